"""How many tokens a server has sampled, in a file that outlives it however it ends."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_COUNT = struct.Struct("<Q")


class Tally:
    """A counter in shared memory of the page cache: a process that is killed between two writes loses nothing of it.

    A server that is started again with the same file counts on from there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = read_tally(path)
        with path.open("r+b" if path.is_file() and path.stat().st_size == _COUNT.size else "w+b") as file:
            file.truncate(_COUNT.size)
            self._map = mmap.mmap(file.fileno(), _COUNT.size)
        self.write(0)

    def write(self, n: int) -> None:
        """Set what this process has counted."""
        _COUNT.pack_into(self._map, 0, self._base + n)


def read_tally(path: Path) -> int:
    """The count of all processes that had the file; 0 where there is none."""
    data = path.read_bytes() if path.is_file() else b""
    return _COUNT.unpack(data)[0] if len(data) == _COUNT.size else 0
