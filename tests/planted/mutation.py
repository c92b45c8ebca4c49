"""What a planted bug is: one exact change of one file, and the tests that are expected to see it."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Level = Literal["unit", "property", "sim", "crash", "durability", "chaos-smoke"]
LEVELS: tuple[str, ...] = get_args(Level)


class TableError(Exception):
    """A row of the table fits the sources no longer."""


@dataclass(frozen=True)
class Check:
    """A pytest selection of one level."""

    level: Level
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Mutation:
    """A bug. `old` occurs exactly once in `file`; `checks` run in order until one fails."""

    name: str
    breaks: str
    """What is wrong with it, for the page."""
    file: str
    old: str
    new: str
    checks: tuple[Check, ...]

    def applied(self, source: str) -> str:
        """The source with the bug in it. Raises TableError if `old` is not there exactly once, or the result is no Python."""
        n = source.count(self.old)
        if n != 1:
            raise TableError(f"{self.name}: its old text occurs {n} times in {self.file}, not once; bring the table up to date")
        if self.old == self.new:
            raise TableError(f"{self.name}: it changes nothing")
        changed = source.replace(self.old, self.new)
        try:
            ast.parse(changed)
        except SyntaxError as error:
            raise TableError(f"{self.name}: {self.file} is no Python with it: {error}") from error
        return changed

    def apply(self, root: Path) -> None:
        """Put the bug into the sources under `root`. Raises TableError."""
        path = root / self.file
        path.write_text(self.applied(path.read_text()))


def unit(*tests: str) -> Check:
    """Tests of one part."""
    return Check("unit", tests)


def prop(*tests: str) -> Check:
    """Properties under hypothesis."""
    return Check("property", tests)


def sim(*tests: str) -> Check:
    """Whole runs in virtual time."""
    return Check("sim", tests)


def crash(*tests: str) -> Check:
    """A real process, broker or rank is killed."""
    return Check("crash", tests)


def durability(*tests: str) -> Check:
    """What is on disk after a power cut or with a full disk."""
    return Check("durability", tests)
