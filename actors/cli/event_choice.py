"""Which messages `asearch events` shows: from its options to one set of subject filters a stream, and where to begin."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from actors.runtime.memory_stream import matches
from asearch.errors import InputError
from asearch.traces.plain_text import plain_line
from schemas.events import Event
from schemas.topology import TOPOLOGY, is_key

STREAMS = tuple(stream.name for stream in TOPOLOGY.streams)
BY_DEFAULT = tuple(name for name in STREAMS if name != "blobs")
"""BLOBS holds chunks of payloads: only for those who ask for it."""
TYPES: dict[str, type[Event]] = {str(fact.event.__struct_config__.tag): fact.event for fact in TOPOLOGY.facts}
_FACTS = {str(fact.event.__struct_config__.tag): fact for fact in TOPOLOGY.facts}
_AGO = re.compile(r"-(\d+(?:\.\d+)?)(s|m|h|d)\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TOKEN = re.compile(r"(?:[^\s.*>]+|\*|>)\Z")


@dataclass(frozen=True)
class Choice:
    """`filters` are those of every stream that is read. A message is meant if one of its stream's matches the whole subject."""

    filters: dict[str, list[str]]
    begin: int | None = None
    """The sequence to begin at."""
    begin_ns: int | None = None
    """The time to begin at."""

    @property
    def from_start(self) -> bool:
        """Whether all that there ever was is meant."""
        return self.begin is None and self.begin_ns is None

    def reading(self, stream: str) -> list[str]:
        """Filters that match what is meant of a stream, and perhaps more: the broker refuses those that overlap."""
        return _without_overlap(self.filters[stream])

    def takes(self, stream: str, subject: str) -> bool:
        """Whether a message on a subject is meant."""
        return any(matches(each, subject) for each in self.filters.get(stream, ()))


def choose(
    run: str, streams: Sequence[str], subjects: Sequence[str], types: Sequence[str], key: str | None
) -> dict[str, list[str]]:
    """The subject filters by stream. Raises InputError for what names nothing."""
    for name in types:
        if name not in TYPES:
            raise InputError(f"there is no event type {plain_line(name)!r}; {_near(name, TYPES)}")
    if key is not None and not is_key(key):
        raise InputError(f"{plain_line(key)!r} cannot be part of a subject: keys are made of letters, digits, '-' and '_'")
    wanted = list(streams) or list(STREAMS if subjects or types else BY_DEFAULT)
    chosen: dict[str, list[str]] = {}
    for stream in wanted:
        rows = [_FACTS[name] for name in types if _FACTS[name].stream == stream]
        if types and not rows:
            continue
        heads = [(row.noun, row.verb) for row in rows] or [("*", "*")]
        mine = [f"asearch.{run}.{stream}.{noun}.{verb}.{_tail(stream, key)}" for noun, verb in heads]
        if key is None and not types:
            mine = [f"asearch.{run}.{stream}.>"]
        if subjects:
            asked = [found for text in subjects if (found := _of_stream(run, stream, text)) is not None]
            mine = [both for one in mine for other in asked if (both := _both(one, other)) is not None]
        if mine:
            chosen[stream] = list(dict.fromkeys(mine))
    if not chosen:
        raise InputError(f"no subject of run '{run}' is in all of these: see `asearch events --help`")
    return chosen


def _near(name: str, known: dict[str, type[Event]]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def _tail(stream: str, key: str | None) -> str:
    n_tokens = next(row.key for row in TOPOLOGY.streams if row.name == stream)
    if key is None:
        return ">"
    return key if n_tokens == 1 else f"{key}.>"


def _of_stream(run: str, stream: str, text: str) -> str | None:
    """A filter as one of whole subjects of a stream; None where it matches none of these. Raises InputError."""
    tokens = text.split(".")
    if not all(_TOKEN.match(each) for each in tokens) or ">" in tokens[:-1]:
        raise InputError(
            f"{plain_line(text)!r} is no subject filter: tokens parted by dots, '*' for any one, '>' at the end for all"
        )
    if tokens[0] not in ("asearch", "*", ">"):
        tokens = ["asearch", run, *tokens]
    elif tokens[0] == "*" and len(tokens) > 1 and tokens[1] not in (run, "*", ">"):
        # `*.tool.requested.>`: the shortened form, of any stream.
        tokens = ["asearch", run, *tokens]
    return _both(".".join(tokens), f"asearch.{run}.{stream}.>")


def _both(one: str, other: str) -> str | None:
    """The filter of the subjects that two filters match; None if there are none."""
    a, b = one.split("."), other.split(".")
    found: list[str] = []
    for at in range(max(len(a), len(b))):
        left, right = _token(a, at), _token(b, at)
        if left == ">" or right == ">":
            rest = b[at:] if left == ">" else a[at:]
            return ".".join([*found, *rest]) if rest else None
        if left is None or right is None or (left != right and "*" not in (left, right)):
            return None
        found.append(right if left == "*" else left)
    return ".".join(found)


def _token(tokens: list[str], at: int) -> str | None:
    return tokens[at] if at < len(tokens) else None


def _without_overlap(filters: list[str]) -> list[str]:
    """Filters no two of which match the same subject: a wider one stands for those that do."""
    kept: list[str] = []
    for new in filters:
        merged = new
        for old in [each for each in kept if _both(each, merged) is not None]:
            kept.remove(old)
            merged = _wider(old, merged)
        kept.append(merged)
    return kept


def _wider(one: str, other: str) -> str:
    a, b = one.split("."), other.split(".")
    found: list[str] = []
    for left, right in zip(a, b, strict=False):
        if ">" in (left, right):
            return ".".join([*found, ">"])
        found.append(left if left == right else "*")
    return ".".join(found) if len(a) == len(b) else ".".join([*found, ">"])


def moment(text: str | None, now_ns: int) -> tuple[int | None, int | None]:
    """A sequence, or a time in nanoseconds, from `--from`: `1200`, `2026-11-21T15:24:29Z`, `-5m`. Raises InputError."""
    if text is None:
        return None, None
    if text.isascii() and text.isdigit() and len(text) < 19:
        return max(1, int(text)), None
    if (ago := _AGO.match(text)) is not None:
        return None, max(0, now_ns - int(float(ago[1]) * _SECONDS[ago[2]] * 1e9))
    try:
        at = datetime.fromisoformat(text)
        # A time without a zone is one of this machine's, as in every shell.
        whole = at.astimezone(UTC)
        return None, max(0, int(whole.timestamp()) * 1_000_000_000 + whole.microsecond * 1000)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"{plain_line(text)!r} is neither a sequence (1200), a time (2026-11-21T15:24:29Z) nor a while ago (-90s, -5m, -2h)"
        ) from error
