"""Which engines a run on this machine keeps alive: `engines.json` in the run's folder, changed while the run goes on.

A supervisor that is started again reads it: who was added is started, who was removed is not. Numbers are never given twice, so
that a late message to an engine that left reaches nobody.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from asearch.configuration.settings import Settings
from asearch.errors import InputError

FILE = "engines.json"


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `engines.json`."""

    engines: list[str]
    """Names, the eldest first."""
    next_number: int
    """Of the next engine that is added."""

    def with_more(self, n: int) -> "Membership":
        """With `n` engines more."""
        names = [f"engine-{self.next_number + k}" for k in range(n)]
        return Membership(engines=[*self.engines, *names], next_number=self.next_number + n)

    def without(self, names: Sequence[str], n: int = 0) -> "Membership":
        """Without the named engines, or without the `n` youngest. Raises InputError where there are not these or not so many."""
        unknown = [name for name in names if name not in self.engines]
        if unknown:
            raise InputError(f"the run keeps no engine {', '.join(unknown)}; it keeps {', '.join(self.engines) or 'none'}")
        if n > len(self.engines):
            raise InputError(f"{n} engines cannot be removed: the run keeps {len(self.engines)}")
        leaving = {*names, *(self.engines[-n:] if n else [])}
        return Membership(engines=[name for name in self.engines if name not in leaving], next_number=self.next_number)


def membership_of(run_dir: Path, settings: Settings) -> Membership:
    """The engines of a run: those it was left with, or those of the settings where it begins."""
    found = read_membership(run_dir)
    if found is not None:
        return found
    n = settings.engine.n_engines
    return Membership(engines=[f"engine-{number}" for number in range(n)], next_number=n)


def read_membership(run_dir: Path) -> Membership | None:
    """What the file says; None where there is none. Raises InputError where it cannot be read."""
    path = run_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def write_membership(run_dir: Path, content: Membership) -> None:
    """Put the file in place; a reader sees the old one or the new one."""
    aside = run_dir / f".{FILE}.part"
    aside.write_bytes(msgspec.json.encode(content))
    aside.replace(run_dir / FILE)
