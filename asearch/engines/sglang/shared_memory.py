"""What a server of SGLang that is killed leaves in shared memory, and to whom it belongs.

Its scheduler tells its load in a file there, and its semaphores have names there; only an orderly end takes them away. The
names say nothing of their owner, so they are found by what the server's processes have mapped while they run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 -- where Linux has shared memory
_LEFT = ("sglang_loads_", "sem.mp-")
"""Beginnings of the names of what is left; anything else is not touched."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file in shared memory: its name may be another's later, its inode is not while it is held."""

    path: Path
    device: int
    inode: int

    def remove(self) -> None:
        """Unlink it, if it is still this file."""
        with contextlib.suppress(OSError):
            found = self.path.stat()
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                self.path.unlink()


def left_by(group: int, folder: Path = FOLDER) -> list[SharedFile]:
    """Files that the processes of a group have mapped now and that would outlive their kill; [] where there is no /proc."""
    mapped = {inode for pid in _members(group) for inode in _mapped_inodes(pid, folder)}
    found: list[SharedFile] = []
    for path in folder.iterdir() if mapped else ():
        if path.name.startswith(_LEFT):
            with contextlib.suppress(OSError):
                status = path.stat()
                if status.st_ino in mapped:
                    found.append(SharedFile(path, status.st_dev, status.st_ino))
    return found


def _members(group: int) -> Iterator[int]:
    proc = Path("/proc")
    for path in proc.iterdir() if proc.is_dir() else ():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.getpgid(int(path.name)) == group:
                    yield int(path.name)


def _mapped_inodes(pid: int, folder: Path) -> Iterator[int]:
    """Inodes of mappings below the folder; a semaphore is mapped under the name that it had first."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            words = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
            if len(words) == 6 and words[5].startswith(f"{folder}{os.sep}"):
                yield int(words[4])
