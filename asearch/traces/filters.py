"""Which rows of the list are shown: the same filter for the command line and the page."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from asearch.errors import ConfigError
from asearch.traces.rows import FATES, STAGES, EpisodeRow

SORTS = ("requested", "ended", "reward", "turns", "tokens", "searches", "elapsed")

ENDINGS = ("answered", "forced", "ended", "malformed", "exhausted", "stopped")
PURPOSES = ("train", "eval", "synthesis")
_VERSION = re.compile(r"\d+(\.\d*)?\Z", re.ASCII)


class EpisodeFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a row must be; what is unset matches every row. Numbers bound inclusively."""

    text: str = ""
    """A part of question, answer, task or episode name, whatever the case."""
    task: str = ""
    group: str = ""
    purpose: str = ""
    label: str = ""
    stage: str = ""
    """A stage, `open` for all without an outcome, or `ended`."""
    ending: str = ""
    fate: str = ""
    reason: str = ""
    correct: bool | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    version: str = ""
    """The oldest version among its tokens, as `lineage.step` or a step alone."""
    min_turns: int | None = None
    max_turns: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    sort: str = "requested"
    """One of SORTS."""
    ascending: bool = False

    def matches(self, row: EpisodeRow) -> bool:
        """Whether a row is one of these."""
        return self._is_named(row) and self._is_within(row) and self._has_text(row)

    def _is_named(self, row: EpisodeRow) -> bool:
        exact = (
            (self.task, row.task),
            (self.group, row.group),
            (self.purpose, row.purpose),
            (self.label, row.label),
            (self.ending, row.ending),
            (self.fate, row.fate),
            (self.reason, row.reason),
        )
        if any(wanted and wanted != value for wanted, value in exact):
            return False
        if self.stage and self.stage not in (row.stage, "open" if row.is_open else "ended"):
            return False
        if self.version and self.version not in (row.version, row.version.partition(".")[2]):
            return False
        return self.correct is None or row.correct is self.correct

    def _is_within(self, row: EpisodeRow) -> bool:
        return (
            _within(row.reward, self.min_reward, self.max_reward)
            and _within(row.n_turns, self.min_turns, self.max_turns)
            and _within(row.n_tokens, self.min_tokens, self.max_tokens)
        )

    def _has_text(self, row: EpisodeRow) -> bool:
        if not self.text:
            return True
        wanted = self.text.casefold()
        return any(wanted in text.casefold() for text in (row.question, row.answer or "", row.task, row.episode))

    def select(self, rows: Iterable[EpisodeRow]) -> list[EpisodeRow]:
        """The rows that match, sorted."""
        found = [row for row in rows if self.matches(row)]
        if self.sort == "requested":
            # The table is in this order already.
            return found if self.ascending else found[::-1]
        return sorted(found, key=_KEYS[self.sort], reverse=not self.ascending)


_KEYS: dict[str, Callable[[EpisodeRow], Any]] = {
    "ended": lambda row: row.ended_ns,
    "reward": lambda row: (row.reward is not None, row.reward or 0.0),
    "turns": lambda row: row.n_turns,
    "tokens": lambda row: row.n_tokens,
    "searches": lambda row: row.n_searches,
    "elapsed": lambda row: (row.elapsed_s is not None, row.elapsed_s or 0.0),
}


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def filter_of(options: Mapping[str, str]) -> EpisodeFilter:
    """The filter that texts by field name describe; empty texts are left out. Raises ConfigError for what cannot be read."""
    given = {name: text for name, text in options.items() if text != ""}
    known = EpisodeFilter.__struct_fields__
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"episodes have no filter {name!r}; {hint}")
    try:
        found = msgspec.convert(given, EpisodeFilter, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"this filter cannot be read: {error}") from error
    if found.sort not in SORTS:
        raise ConfigError(f"episodes cannot be sorted by {found.sort!r}; known are {', '.join(SORTS)}")
    _check_values(found)
    return found


def _check_values(wanted: EpisodeFilter) -> None:
    """Raises ConfigError for a value that no episode can have: an empty list would be taken for an answer."""
    known = {"stage": ("open", "ended", *STAGES), "ending": ENDINGS, "fate": FATES, "purpose": PURPOSES}
    for name, values in known.items():
        value = getattr(wanted, name)
        if value and value not in values:
            near = difflib.get_close_matches(value, values, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(values)}"
            raise ConfigError(f"no episode has {name} {value!r}; {hint}")
    if wanted.version and not _VERSION.match(wanted.version):
        raise ConfigError(f"{wanted.version!r} is no policy version: write lineage and step as 1.3, or the step alone")
