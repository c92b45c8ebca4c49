"""The TRACE of an episode as the driver that holds it knows it.

Every append is conditional on the episode's last sequence, so of two drivers that hold the same episode one is refused. A
refused driver reads the episode again. If what is there is a prefix of the facts that it knows, a broker has lost a tail, and
it appends what is missing: the same ids, the same bytes. Else another driver holds the episode, and it abandons it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from actors.runtime.bus import Bus, Stored
from asearch.agents.recorded import valid_facts
from asearch.errors import AsearchError, BusError, ConflictError
from schemas.codec import encode
from schemas.events import EpisodeRequested, EpisodeTaken, Outcome, PlanFolded, TraceFact

MAX_TRIES = 5
"""Times that an episode is read again after one refusal; every time somebody or another outage came in between."""
READ_TIMEOUT_S = 30.0

log = structlog.get_logger()


class Abandoned(AsearchError):
    """Another driver holds the episode, or it has ended elsewhere."""


@dataclass
class HeldTrace:
    """What this driver has read and written of an episode, and where it stands in the stream."""

    bus: Bus
    episode: str
    request: EpisodeRequested | None = None
    asked_at: int = 0
    """Where the request lies in PLAN, 0 if that is not known."""
    known: list[TraceFact] = field(default_factory=list[TraceFact])
    """The valid facts: those that were there when the episode was taken, then this driver's own. The last may be in doubt."""
    last_sequence: int = 0
    n_reconciled: int = 0
    """How often facts that the broker had lost were appended again."""

    def __post_init__(self) -> None:
        self._n_reconnects = self.bus.n_reconnects

    async def read(self) -> list[Stored]:
        """What the stream holds of the episode. Raises BusError."""
        return await self._read("trace")

    async def has_outcome(self) -> bool:
        """Whether the episode has ended. Raises BusError."""
        return any(isinstance(item.event, Outcome) for item in await self._read("outcomes")) or await self._is_settled()

    async def _is_settled(self) -> bool:
        """Whether PLAN says so: the outcome is purged once `PlanFolded` stands for it, and then TRACE is empty too."""
        if self.request is None or not self.asked_at:
            return False
        found = await self.bus.get_last(PlanFolded, self.bus.run)
        if found is None or not isinstance(found.event, PlanFolded) or found.sequence < self.asked_at:
            return False
        return self.request.member not in found.event.open.get(self.request.group, [])

    async def take(self, taken: EpisodeTaken, before: Sequence[Stored] = ()) -> None:
        """Hold the episode after the messages `before`. Raises ConflictError if these are not all there is, BusError."""
        last = before[-1].sequence if before else 0
        self.last_sequence = await self.bus.append(taken, self.episode, expected=last)
        self.known = [*valid_facts(item.event for item in before), taken]

    async def append(self, fact: TraceFact) -> None:
        """Store a fact; it is stored when this returns. Raises Abandoned, BusError."""
        self.known.append(fact)
        if not self._has_reconnected:
            try:
                self.last_sequence = await self.bus.append(fact, self.episode, expected=self.last_sequence)
            except ConflictError:
                await self.reconcile()
                return
        # After an outage a sequence may have been given to another message: a success does not say what it stands behind.
        await self.refresh()

    async def refresh(self) -> None:
        """Reconcile if the connection was lost since the last time. Raises Abandoned, BusError."""
        if self._has_reconnected:
            await self.reconcile()

    @property
    def _has_reconnected(self) -> bool:
        return self.bus.n_reconnects != self._n_reconnects

    async def reconcile(self) -> None:
        """Make the stream hold what is known. Raises Abandoned if it holds anything else, BusError."""
        for _ in range(MAX_TRIES):
            self._n_reconnects = self.bus.n_reconnects
            if await self.has_outcome():
                raise Abandoned(f"episode {self.episode} has ended already")
            stored = await self.read()
            missing = self._missing(stored)
            self.last_sequence = stored[-1].sequence if stored else 0
            if await self._append_all(missing) and not self._has_reconnected:
                if missing:
                    self.n_reconciled += 1
                    log.info("lost facts appended again", episode=self.episode, n=len(missing))
                return
        raise Abandoned(f"episode {self.episode}: refused {MAX_TRIES} times in a row; its driver gives it up")

    def _missing(self, stored: list[Stored]) -> list[TraceFact]:
        there = valid_facts(item.event for item in stored)
        known = self.known[: len(there)]
        if len(known) < len(there) or any(encode(a) != encode(b) for a, b in zip(there, known, strict=True)):
            raise Abandoned(f"episode {self.episode} is held by another driver")
        return self.known[len(there) :]

    async def _append_all(self, facts: list[TraceFact]) -> bool:
        """Whether all were stored, with nothing of anybody else between them."""
        try:
            for fact in facts:
                self.last_sequence = await self.bus.append(fact, self.episode, expected=self.last_sequence)
        except ConflictError:
            return False
        return True

    async def _read(self, stream: str) -> list[Stored]:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await self.bus.read_key(stream, self.episode)
        except TimeoutError:
            message = f"the broker did not show what stream {stream} holds of episode {self.episode} within {READ_TIMEOUT_S:g} s"
            raise BusError(message) from None
