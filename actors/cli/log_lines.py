"""The lines of a run's log files: which are about an episode, when they were written, how they look."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec

from asearch.traces.plain_text import plain, plain_line

IDS = ("episode", "event_id", "request", "call", "subject", "trace_id", "key", "id")
"""Fields that may name an episode."""
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d{1,6})?) ?(Z|[+-]\d\d:?\d\d)?")


@dataclass(frozen=True)
class LogLine:
    """A line. `at` is in seconds since the epoch; a line that does not say takes the time of the one before it."""

    actor: str
    at: float
    text: str
    fields: dict[str, Any] | None
    """What it says, where it is JSON."""


class LogFile:
    """A log file that is read on from where it was read to; one that became shorter is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.actor = path.stem
        self._end = 0
        self._at = 0.0

    def more(self) -> Iterator[LogLine]:
        """The whole lines that were not read yet."""
        try:
            with self.path.open("rb") as file:
                file.seek(0, 2)
                if file.tell() < self._end:
                    self._end = 0
                file.seek(self._end)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._end += len(line)
                    yield self._line(line.rstrip(b"\r\n"))
        except OSError:
            return

    def _line(self, line: bytes) -> LogLine:
        fields: dict[str, Any] | None = None
        if line.startswith(b"{"):
            try:
                found: object = msgspec.json.decode(line)
            except msgspec.DecodeError:
                found = None
            if isinstance(found, dict):
                fields = cast("dict[str, Any]", found)
        stamp = str(fields.get("timestamp", "")).encode() if fields is not None else line[:64]
        self._at = _seconds(stamp) or self._at
        return LogLine(self.actor, self._at, line.decode("utf-8", "replace"), fields)


def _seconds(text: bytes) -> float | None:
    found = _STAMP.search(text)
    if found is None:
        return None
    zone = (found[3] or b"Z").decode()
    try:
        at = datetime.fromisoformat(f"{found[1].decode()}T{found[2].decode().replace(',', '.')}")
        shift = datetime.strptime(zone.replace("Z", "+0000").replace(":", ""), "%z").utcoffset()
    except ValueError:
        return None
    return at.replace(tzinfo=UTC).timestamp() - (shift.total_seconds() if shift is not None else 0.0)


class About:
    """Whether a line is about an episode: it names it, its trace, or something whose name begins with the episode's."""

    def __init__(self, episode: str, trace_id: str) -> None:
        self._episode = episode
        self._trace_id = trace_id
        # `t-1-0-1` is not named by `t-1-0-12`, but by `t-1-0-1:g0` and `t-1-0-1-0-3-tool`.
        self._named = re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(episode)}(?![A-Za-z0-9_])")

    def __call__(self, line: LogLine) -> bool:
        """Whether the line is about the episode."""
        if line.fields is None:
            return self._episode in line.text and self._named.search(line.text) is not None
        known = line.fields.get("episode")
        if isinstance(known, str):
            return known == self._episode
        if line.fields.get("trace_id") == self._trace_id:
            return True
        return self._episode in line.text and self._named.search(line.text) is not None


def line_text(line: LogLine) -> str:
    """A line for people."""
    when = "" if not line.at else datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
    if line.fields is None:
        return f"{when:<24}  {line.actor:<16}  {plain_line(line.text)}"
    said = dict(line.fields)
    level, event = str(said.pop("level", "")).lower(), str(said.pop("event", ""))
    for name in ("timestamp", "run", "actor"):
        said.pop(name, None)
    trace = said.pop("exception", None)
    parts = [f"{name}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}" for name, value in said.items()]
    first = plain_line(f"{when:<24}  {line.actor:<16}  {level:<7}  {event}  {' '.join(parts)}".rstrip())
    return first if not isinstance(trace, str) else "\n".join([first, *(f"    {each}" for each in plain(trace).split("\n"))])


def line_json(line: LogLine) -> dict[str, Any]:
    """A line for programs: what it said, with the name of its file."""
    said = {"text": line.text} if line.fields is None else line.fields
    return {"log": line.actor, **said}
