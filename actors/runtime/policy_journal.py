"""The trainer's journal, POLICY: read once, then appended to under a claim that is also the fence.

Every append is conditional on the last message of the model, so a trainer that was replaced can say nothing any more. What
the journal holds decides which checkpoints stand: those that were committed, or that a claim went on from, and that no later
claim went back before.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from actors.runtime.bus import Bus, Stored
from actors.runtime.patience import append_patiently
from asearch.errors import ConflictError, SecondTrainerError
from asearch.training.checkpoints import version_of
from schemas.events import CheckpointCommitted, Event, PolicyPublished, StepTrained, TrainerClaimed
from schemas.records import Version

ADVICE = "This trainer stops and publishes nothing more; start one trainer per run"


class PolicyJournal:
    """POLICY of one model, as its trainer sees and writes it."""

    def __init__(self, bus: Bus, model: str, waits_for: Callable[[str], None]) -> None:
        """`waits_for` hears what keeps an append from being stored, "" when it is over."""
        self._bus = bus
        self._waits_for = waits_for
        self._model = model
        self._last = 0
        self._turn = asyncio.Lock()
        self.lineage = 0
        """Of the newest claim."""
        self.claims: list[Version] = []
        """Every lineage with the step from which it went on."""
        self.checkpoints: list[Version] = []
        """Those that stand, oldest first."""
        self.published: list[str] = []
        """Folders of published weights, oldest first, each once."""
        self.n_repeated = 0
        """Steps that were trained again after a claim had made them void."""
        self._n_reached = 0

    async def read(self) -> None:
        """Read what the journal holds."""
        async with aclosing(self._bus.read("policy", key=(self._model,), follow=False)) as reader:
            async for stored in reader:
                self._take(stored)

    def _take(self, stored: Stored) -> None:
        self._last = stored.sequence
        event = stored.event
        if isinstance(event, TrainerClaimed):
            self.lineage = max(self.lineage, event.lineage)
            self.claims.append(Version(lineage=event.lineage, step=event.step))
            self.checkpoints = [each for each in self.checkpoints if each.step <= event.step]
            restored = version_of(event.checkpoint or "")
            if restored is not None and restored not in self.checkpoints:
                self.checkpoints.append(restored)
        elif isinstance(event, CheckpointCommitted):
            self.checkpoints.append(Version(lineage=event.lineage, step=event.step))
        elif isinstance(event, PolicyPublished):
            self.published = [each for each in self.published if each != event.manifest.path] + [event.manifest.path]
        elif isinstance(event, StepTrained):
            self.n_repeated += event.step < self._n_reached
            self._n_reached = max(self._n_reached, event.step + 1)

    async def append(self, event: Event) -> None:
        """Store a fact. Raises SecondTrainerError if anybody else has written since this journal was read or written."""
        async with self._turn:
            try:
                self._last = await append_patiently(self._bus, event, self._model, expected=self._last, waits_for=self._waits_for)
            except ConflictError as error:
                await self.check()
                raise SecondTrainerError(f"another trainer writes the journal of {self._model}: {error}. {ADVICE}") from error
            self._take(Stored(stream="policy", subject="", sequence=self._last, data=b"", event=event))

    async def check(self) -> None:
        """Raises SecondTrainerError if another trainer has claimed the model."""
        async with aclosing(self._bus.read("policy", key=(self._model,), events=(TrainerClaimed,), follow=False)) as reader:
            async for stored in reader:
                self._refuse_younger(stored)

    async def watch(self) -> None:
        """Raises SecondTrainerError as soon as another trainer claims the model; waits for that until cancelled."""
        async with aclosing(self._bus.read("policy", key=(self._model,), events=(TrainerClaimed,))) as reader:
            async for stored in reader:
                self._refuse_younger(stored)

    def _refuse_younger(self, stored: Stored) -> None:
        if isinstance(stored.event, TrainerClaimed) and stored.event.lineage > self.lineage:
            raise SecondTrainerError(
                f"{stored.event.trainer} has claimed lineage {stored.event.lineage} of {self._model}. {ADVICE}"
            )
