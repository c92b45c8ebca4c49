"""Where each episode stands in `archive/episodes.jsonl`: found by its line's head, read only when asked for."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from schemas.archive import EPISODES

_HEAD = re.compile(rb'\{"episode":"((?:[^"\\]|\\.)*)"')
BLOCK_BYTES = 1 << 22
HEAD_BYTES = 512


class ArchiveIndex:
    """Grows with the file. A last line without its end is not there yet."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the archive of a run; it need not exist yet."""
        self.path = folder / EPISODES
        self._at: dict[str, tuple[int, int]] = {}
        self._end = 0
        self.n_unnamed = 0
        """Lines whose name cannot be read."""

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, episode: str) -> bool:
        return episode in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def names(self, start: int = 0) -> list[str]:
        """Names in the order of the archive, from the `start`th on: of what `refresh` took in since there were so many."""
        return list(islice(self._at, start, None))

    def refresh(self) -> None:
        """Take in the lines that were written since."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._end)
            head, begin = b"", self._end
            at = begin
            while block := file.read(BLOCK_BYTES):
                place = 0
                while (end := block.find(b"\n", place)) >= 0:
                    self._add((head + block[place : min(end, place + HEAD_BYTES)])[:HEAD_BYTES], begin, at + end + 1 - begin)
                    head, place, begin = b"", end + 1, at + end + 1
                head = (head + block[place : place + HEAD_BYTES])[:HEAD_BYTES]
                at += len(block)
            self._end = begin

    def _add(self, head: bytes, begin: int, n_bytes: int) -> None:
        found = _HEAD.match(head)
        try:
            name = msgspec.json.decode(b'"' + found[1] + b'"', type=str) if found is not None else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            name = None
        if name is None:
            self.n_unnamed += 1
        else:
            self._at[name] = (begin, n_bytes)

    def line(self, episode: str) -> bytes:
        """The line of an episode, without its end. Raises KeyError."""
        begin, n_bytes = self._at[episode]
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(n_bytes).rstrip(b"\n")
