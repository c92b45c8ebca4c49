"""Reports the spans of archived episodes, each at least once: what a killed recorder had not sent, the next one sends again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from actors.runtime.archive import newest_lines
from actors.runtime.episode_spans import episode_spans, late_spans, turns_of
from actors.runtime.platform import Platform
from actors.runtime.tracing import Tracing
from asearch.agents.settings import AgentSettings
from schemas.archive import EPISODES
from schemas.events import AnyEvent, AnyOutcome, EpisodeGraded, Event

MARK = "traced"
MARK_EVERY_S = 5.0
FLUSH_TIMEOUT_S = 30.0
LAST_FLUSH_TIMEOUT_S = 2.0
MAX_GIVEN_UP = 1000
MAX_AGAIN = 1000
"""Episodes that are reported again after a kill, the newest; more would overflow the queue of spans."""


class _Line(msgspec.Struct):
    sequence: int
    outcome: AnyOutcome
    facts: list[AnyEvent]


@dataclass
class _GivenUp:
    """An episode that was given up: its driver may not have heard of it. `known` are the turns that are reported."""

    outcome: AnyOutcome
    known: set[int] | None = None
    waiting: list[Event] = field(default_factory=list[Event])
    """Facts that came while the episode was archived."""


class ArchivedSpans:
    """Of one run. `MARK` holds the sequence of the last outcome whose spans were sent."""

    def __init__(self, tracing: Tracing, run: str, folder: Path, agent: AgentSettings) -> None:
        self._tracing = tracing
        self._run = run
        self._folder = folder
        self._agent = agent
        self._last = 0
        self._given_up: dict[str, _GivenUp] = {}

    def begin(self, outcome: AnyOutcome) -> None:
        """An episode's facts are about to be read; what comes later is told to `late`."""
        if self._tracing.on and not isinstance(outcome, EpisodeGraded):
            if len(self._given_up) >= MAX_GIVEN_UP:
                del self._given_up[next(iter(self._given_up))]
            self._given_up[outcome.episode] = _GivenUp(outcome)

    def emit(self, sequence: int, outcome: AnyOutcome, facts: Iterable[Event]) -> None:
        """Report an episode that is archived."""
        if not self._tracing.on:
            return
        spans = episode_spans(self._run, outcome, facts, self._agent)
        for span in spans:
            self._tracing.emit(span)
        self._last = max(self._last, sequence)
        if (given_up := self._given_up.get(outcome.episode)) is not None:
            given_up.known = turns_of(spans)
            waiting, given_up.waiting = given_up.waiting, []
            for fact in waiting:
                self.late(fact)

    def late(self, fact: Event) -> None:
        """Report what a driver does of an episode that was given up meanwhile."""
        given_up = self._given_up.get(getattr(fact, "episode", "")) if self._given_up else None
        if given_up is None:
            return
        if given_up.known is None:
            given_up.waiting.append(fact)
            return
        for span in late_spans(self._run, given_up.outcome, fact, given_up.known, self._agent):
            self._tracing.emit(span)

    def resume(self, archived: int) -> None:
        """Report what was archived up to this sequence and not marked as sent. Without a mark tracing has begun just now."""
        if not self._tracing.on:
            return
        mark = self._folder / MARK
        sent = int(mark.read_text()) if mark.is_file() else archived
        self._last = archived
        for line in reversed(list(islice(self._since(sent), MAX_AGAIN))):
            self.emit(line.sequence, line.outcome, line.facts)
        self._mark(sent)

    def _since(self, sent: int) -> Iterator[_Line]:
        for data in newest_lines(self._folder / EPISODES):
            line = msgspec.json.decode(data, type=_Line)
            if line.sequence <= sent:
                return
            yield line

    async def keep_marking(self, platform: Platform) -> None:
        """Say every MARK_EVERY_S how far the spans were sent, until cancelled."""
        while self._tracing.on:
            await platform.sleep(MARK_EVERY_S)
            last = self._last
            if await self._tracing.flush(FLUSH_TIMEOUT_S):
                self._mark(last)

    async def finish(self) -> None:
        """Send what is left, and say so."""
        if self._tracing.on and await self._tracing.flush(LAST_FLUSH_TIMEOUT_S):
            self._mark(self._last)

    def _mark(self, sequence: int) -> None:
        """Not synced: after a power cut some episodes are reported twice."""
        aside = self._folder / f".{MARK}.part"
        try:
            aside.write_text(f"{sequence}\n")
            aside.replace(self._folder / MARK)
        except OSError:
            aside.unlink(missing_ok=True)  # the disk is full, which the archive says
