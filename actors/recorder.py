"""Archives every episode that has an outcome, then purges its facts; the only actor that purges streams.

TRACE is purged up to the oldest episode that is still open: facts of ended episodes lie in `archive/episodes.jsonl` by then.
BLOBS of an episode go when the checkpoint before the newest has settled its outcome: a trainer may have to go back to that.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from actors.runtime.actor import Actor, Context
from actors.runtime.bus import Stored
from schemas.events import CheckpointCommitted, EpisodeDead, EpisodeDropped, EpisodeFinished, EpisodeGraded, Event

PURGE_EVERY_S = 5.0
TRACE_WAIT_S = 10.0


class ArchivedEpisode(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `archive/episodes.jsonl`: the outcome of an episode and every fact of its TRACE, in order."""

    episode: str
    sequence: int
    outcome: EpisodeGraded | EpisodeDropped | EpisodeDead
    facts: list[Event]


class Recorder(Actor):
    """One per run."""

    kind = "recorder"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._path: Path = context.run_dir / "archive" / "episodes.jsonl"
        self._facts: dict[str, list[Stored]] = {}
        self._trace_sequence = 0
        self._outcome_sequence = 0
        self._trace_moved = asyncio.Condition()
        self._archived: set[str] = set()
        self._unsettled: dict[str, int] = {}
        self._encoder = msgspec.json.Encoder()
        self._n_purged = 0

    def gauges(self) -> dict[str, float]:
        """Episodes archived, episodes open, messages purged."""
        return {"n_archived": len(self._archived), "n_open": len(self._facts), "n_purged": self._n_purged}

    async def start(self) -> None:
        """Read back what is archived already, then follow TRACE, OUTCOMES and checkpoints."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._read_back)
        self._file = self._path.open("ab")
        self.spawn(self._follow_trace(), "trace")
        self.spawn(self._follow_checkpoints(), "checkpoints")

    def _read_back(self) -> None:
        """Learn what is archived; cut a line that a crash left unfinished."""
        if not self._path.is_file():
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self._path, whole)
        head = msgspec.json.Decoder(_Head)
        for line in data[:whole].splitlines():
            entry = head.decode(line)
            self._archived.add(entry.episode)
            self._unsettled[entry.episode] = entry.sequence

    async def work(self) -> None:
        """Archive episodes in the order of their outcomes."""
        purged_s = self.platform.monotonic()
        async with aclosing(self.bus.read("outcomes")) as reader:
            async for stored in reader:
                await self._take(stored)
                if self.platform.monotonic() - purged_s > PURGE_EVERY_S:
                    await self._purge()
                    purged_s = self.platform.monotonic()

    async def drain(self) -> None:
        """Archive the outcomes that are stored by now, and make everything durable."""
        async with aclosing(self.bus.read("outcomes", start_sequence=self._outcome_sequence + 1, follow=False)) as rest:
            async for stored in rest:
                await self._take(stored)
        await asyncio.to_thread(self._sync)
        self._file.close()

    async def _take(self, stored: Stored) -> None:
        outcome = stored.event
        if isinstance(outcome, EpisodeGraded | EpisodeDropped | EpisodeDead) and outcome.episode not in self._archived:
            await self._archive(stored.sequence, outcome)
        elif outcome is None:
            await self.is_fact(stored)
        self._outcome_sequence = stored.sequence

    async def _follow_trace(self) -> None:
        async with aclosing(self.bus.read("trace")) as reader:
            async for stored in reader:
                episode = stored.key[-1]
                # A message that is no fact goes to DEAD: it is in no archive, and holds up no purge.
                if await self.is_fact(stored) and episode not in self._archived:
                    self._facts.setdefault(episode, []).append(stored)
                async with self._trace_moved:
                    self._trace_sequence = stored.sequence
                    self._trace_moved.notify_all()

    async def _archive(self, sequence: int, outcome: EpisodeGraded | EpisodeDropped | EpisodeDead) -> None:
        # What is stored by now holds every fact of the episode, unless a broker has lost it: then it never comes.
        trace = await self.bus.stream_info("trace")
        last = trace.last_sequence if trace.n_messages else 0
        graded = isinstance(outcome, EpisodeGraded)
        await self._wait_for_trace(
            lambda: self._trace_sequence >= last or (graded and self._has_end(outcome.episode)), outcome.episode
        )
        stored = self._facts.pop(outcome.episode, [])
        entry = ArchivedEpisode(
            episode=outcome.episode,
            sequence=sequence,
            outcome=outcome,
            facts=[item.event for item in stored if item.event is not None],
        )
        self._file.write(self._encoder.encode(entry) + b"\n")
        self._archived.add(outcome.episode)
        self._unsettled[outcome.episode] = sequence
        await self.platform.fault("recorder.archived")

    async def _wait_for_trace(self, has_come: Callable[[], bool], episode: str) -> None:
        """Facts of an episode are stored before its outcome, but are read through another reader, which may be behind."""
        try:
            async with asyncio.timeout(TRACE_WAIT_S), self._trace_moved:
                await self._trace_moved.wait_for(has_come)
        except TimeoutError:
            self.log.warning("the trace reader is behind", at=self._trace_sequence, episode=episode)

    def _has_end(self, episode: str) -> bool:
        return any(isinstance(item.event, EpisodeFinished) for item in reversed(self._facts.get(episode, ())))

    async def _follow_checkpoints(self) -> None:
        before: int | None = None
        async with aclosing(self.bus.read("policy")) as reader:
            async for stored in reader:
                if await self.is_fact(stored) and isinstance(stored.event, CheckpointCommitted):
                    if before is not None:
                        await self._purge_blobs(min(before, stored.event.watermark))
                    before = stored.event.watermark

    async def _purge_blobs(self, watermark: int) -> None:
        for episode in [name for name, sequence in self._unsettled.items() if sequence <= watermark]:
            self._n_purged += await self.bus.purge("blobs", key=(episode,))
            del self._unsettled[episode]

    async def _purge(self) -> None:
        """Drop from TRACE what lies before the first fact of every open episode."""
        await asyncio.to_thread(self._sync)
        open_from = min((facts[0].sequence for facts in self._facts.values()), default=self._trace_sequence + 1)
        if open_from > 1:
            self._n_purged += await self.bus.purge("trace", up_to_sequence=open_from - 1)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class _Head(msgspec.Struct):
    episode: str
    sequence: int
