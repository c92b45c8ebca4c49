"""Files of lines that survive a kill at any point: appended to, repaired at their end, never written by two processes."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from asearch.errors import AsearchError
from schemas.archive import ArchivedOutcome, decode_outcome

BLOCK_BYTES = 1 << 16


class ArchiveError(AsearchError):
    """The archive does not fit the run's streams."""


class SecondRecorderError(AsearchError):
    """Another recorder writes this run's archive."""


class LineFile:
    """Lines of growing sequence numbers. A line is there whole or not at all; `last` is the sequence of the newest.

    The file is open only while it is written, unbuffered: nothing can be written later by a process that is taken for dead.
    """

    def __init__(self, path: Path, sequence_of: Callable[[bytes], int]) -> None:
        """`sequence_of` reads a line; it raises msgspec.DecodeError for one that is not whole."""
        self.path = path
        self._sequence_of = sequence_of
        self.last = 0
        self._n_bytes = 0

    def open(self) -> None:
        """Cut off what a crash has left unfinished, and learn what the last line is."""
        is_new = not self.path.exists()
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._n_bytes, self.last = self._whole(file.fileno())
            os.ftruncate(file.fileno(), self._n_bytes)
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(self.path.parent)

    def _whole(self, fd: int) -> tuple[int, int]:
        """Where the last line that can be read ends, and its sequence."""
        end = _line_begin(fd, os.fstat(fd).st_size)
        while end > 0:
            begin = _line_begin(fd, end - 1)
            try:
                return end, self._sequence_of(os.pread(fd, end - begin, begin))
            except msgspec.DecodeError:
                end = begin
        return 0, 0

    def append(self, sequence: int, line: bytes) -> None:
        """Write a line. Raises SecondRecorderError if the file has grown meanwhile, OSError if it cannot be written."""
        with self.path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size != self._n_bytes:
                raise SecondRecorderError(f"something else writes {self.path}; one recorder a run, stop the other")
            try:
                rest = memoryview(line + b"\n")
                while rest:
                    rest = rest[os.write(file.fileno(), rest) :]
            except OSError:
                os.ftruncate(file.fileno(), self._n_bytes)
                raise
        self._n_bytes += len(line) + 1
        self.last = sequence

    def sync(self) -> None:
        """Make every line durable."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def newest_lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file without their ends, the newest first; none where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        end = _line_begin(fd, os.fstat(fd).st_size)
        while end > 0:
            begin = _line_begin(fd, end - 1)
            yield os.pread(fd, end - 1 - begin, begin)
            end = begin
    finally:
        os.close(fd)


def _line_begin(fd: int, end: int) -> int:
    """The position after the last line end before `end`."""
    while end > 0:
        begin = max(0, end - BLOCK_BYTES)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def write_once(path: Path, data: bytes) -> None:
    """Put a file in place, durable; one that is there is left as it is."""
    if path.exists():
        return
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_outcomes(path: Path) -> Iterator[ArchivedOutcome]:
    """The lines of `outcomes.jsonl`; none where there is no such file. A last line without its end is left out.

    Raises ArchiveError for a line that cannot be read: without it no count would be right.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _outcome(path, number, line)
    except FileNotFoundError:
        return


def _outcome(path: Path, number: int, line: bytes) -> ArchivedOutcome:
    try:
        return decode_outcome(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(f"{path}, line {number} cannot be read: {error}; put back a copy of the file that is whole") from error


class EpisodeNames:
    """A set of episode names. Those of one group, which end with their member's number, share one integer."""

    def __init__(self) -> None:
        self._members: dict[str, int] = {}
        self._n = 0

    def add(self, name: str) -> None:
        """Put a name in; a second time changes nothing."""
        if name not in self:
            group, bit = _split(name)
            self._members[group] = self._members.get(group, 0) | bit
            self._n += 1

    def __contains__(self, name: str) -> bool:
        group, bit = _split(name)
        return bool(self._members.get(group, 0) & bit)

    def __len__(self) -> int:
        return self._n


def _split(name: str) -> tuple[str, int]:
    group, _, member = name.rpartition("-")
    if group and member.isascii() and member.isdigit() and len(member) <= 4 and str(int(member)) == member:
        return f"{group}-", 1 << int(member)
    return name, 1
