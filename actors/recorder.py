"""Archives every episode that has an outcome, then purges its facts; the only actor that purges streams.

Nothing is purged before what lies in it is archived and synced. TRACE goes up to the oldest episode that is still open.
OUTCOMES and the BLOBS of their episodes go up to the lowest of: the watermarks of the two newest checkpoints, because a
trainer may have to go back to either; the newest `PlanFolded`, because the scheduler reads on from there; what is archived.
The tokens of updates go as soon as they are archived (`actors.runtime.step_archive`).
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from actors.runtime.actor import Actor, Context
from actors.runtime.archive import ArchiveError, EpisodeNames, LineFile, read_outcomes, write_once
from actors.runtime.archived_spans import ArchivedSpans
from actors.runtime.bus import Stored
from actors.runtime.episode_lines import encode_episode
from actors.runtime.parquet_child import write_parquet
from actors.runtime.step_archive import StepArchive
from asearch.errors import BlobMissingError, BusError, StreamRewoundError
from schemas.archive import BLOBS, EPISODES, OUTCOMES, archived_outcome, decode_outcome
from schemas.events import (
    AnyOutcome,
    CheckpointCommitted,
    EpisodeFinished,
    EpisodeRequested,
    Event,
    PlanFolded,
    ToolReturned,
    TraceFact,
    TrainerClaimed,
)
from schemas.records import BlobRef
from schemas.topology import is_key

PURGE_EVERY_S = 5.0
DISK_RETRY_S = 2.0
MAX_STRANGERS = 1000
"""Names that are looked up in PLAN in one round of purging."""
N_COMMITS = 16


class Recorder(Actor):
    """One per run."""

    kind = "recorder"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._folder: Path = context.run_dir / "archive"
        self._episode_file = LineFile(self._folder / EPISODES, lambda line: msgspec.json.decode(line, type=_Head).sequence)
        self._outcome_file = LineFile(self._folder / OUTCOMES, lambda line: decode_outcome(line).sequence)
        self._spans = ArchivedSpans(context.tracing, context.run, self._folder, context.settings.agent)
        self._names = EpisodeNames()
        self._taken = 0
        self._unsettled: deque[tuple[int, str]] = deque()
        """Sequence and episode of outcomes whose blobs are not purged."""
        self._trace_sequence = 0
        self._may_purge = 0
        """What the round before found that could be purged of TRACE."""
        self._as_of = 0
        """`n_reconnects` at that round."""
        self._first: dict[str, int] = {}
        """Where the first fact of every episode lies that is not archived."""
        self._known: set[str] = set()
        """Of these, the ones that PLAN asks for."""
        self._commits: list[CheckpointCommitted] = []
        self._folded = 0
        self._steps = StepArchive(self.bus, self._folder, self._write)
        self._encoder = msgspec.json.Encoder()
        self._n_purged = 0
        self._n_blobs_missing = 0

    def gauges(self) -> dict[str, float]:
        """Episodes archived, episodes with facts that are not, messages purged, payloads that were gone before."""
        return {
            "n_archived": len(self._names),
            "n_open": len(self._first),
            "n_purged": self._n_purged,
            "n_blobs_missing": self._n_blobs_missing + self._steps.n_missing,
        }

    async def start(self) -> None:
        """Read back what is archived already, then follow TRACE, POLICY and BLOBS."""
        (self._folder / BLOBS).mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._read_back)
        await self._check_archive()
        self.spawn(self._follow("trace", self._on_trace, self._forget_trace), "trace")
        self.spawn(self._follow("policy", self._on_policy, self._forget_policy), "policy")
        # Others read of BLOBS what they are referred to. This reads all, for what is no fact.
        self.spawn(self._follow("blobs", self._steps.on_blob, self._steps.forget_blobs), "blobs")
        self.spawn(self._keep_purging(), "purge")
        if self.tracing.on:
            self.spawn(self._spans.keep_marking(self.platform), "spans")

    def _read_back(self) -> None:
        self._episode_file.open()
        self._outcome_file.open()
        self._spans.resume(self._episode_file.last)
        try:
            for line in read_outcomes(self._outcome_file.path):
                if line.outcome is not None and line.sequence <= self._episode_file.last:
                    self._names.add(line.outcome.episode)
        except ArchiveError as error:
            raise ArchiveError(f"{error}, or move it away, and the streams' rest is kept") from error

    async def _check_archive(self) -> None:
        """What is archived was once in OUTCOMES: a broker that ends before was put back to an older state."""
        last, stored = self._outcome_file.last, await self.bus.last_sequence("outcomes")
        if last > stored:
            raise ArchiveError(
                f"{self._outcome_file.path} holds outcome {last}, but OUTCOMES ends at {stored}: the broker's store is older "
                "than the archive. Put the store back that belongs to this run, or begin a new run"
            )

    # --- outcomes ---

    async def work(self) -> None:
        """Archive episodes in the order of their outcomes."""
        async with aclosing(self.bus.read("outcomes")) as reader:
            async for stored in reader:
                await self._take(stored)

    async def drain(self) -> None:
        """Archive the outcomes and the updates that are stored by now, durably, and have an ended run's tables written."""
        async with aclosing(self.bus.read("outcomes", start_sequence=self._taken + 1, follow=False)) as rest:
            async for stored in rest:
                await self._take(stored)
        await self._in_thread(self._sync)
        async with aclosing(self.bus.read("policy", start_sequence=self._steps.sequence + 1, follow=False)) as journal:
            async for stored in journal:
                self._steps.on_policy(stored)
        await self._steps.archive()
        await self._spans.finish()
        await write_parquet(self.context, self.log)

    async def _take(self, stored: Stored) -> None:
        outcome = stored.event if isinstance(stored.event, AnyOutcome) else None
        if outcome is None and await self.is_fact(stored):
            await self.bury(stored, f"a {type(stored.event).__name__} is no outcome")
        if outcome is not None:
            if outcome.episode not in self._names and stored.sequence > self._episode_file.last:
                await self._archive(stored.sequence, outcome)
            self._names.add(outcome.episode)
            self._first.pop(outcome.episode, None)
            self._known.discard(outcome.episode)
            self._unsettled.append((stored.sequence, outcome.episode))
        if stored.sequence > self._outcome_file.last:
            line = self._encoder.encode(archived_outcome(stored.sequence, outcome, stored.data))
            await self._write(lambda: self._outcome_file.append(stored.sequence, line), is_small=True)
        self._taken = stored.sequence

    async def _archive(self, sequence: int, outcome: AnyOutcome) -> None:
        self._spans.begin(outcome)
        stored = await self.bus.read_key("trace", outcome.episode)
        facts = [(each.sequence, each.event) for each in stored if isinstance(each.event, TraceFact)]
        for ref in filter(None, (_only_copy(fact) for _, fact in facts)):
            await self._archive_blob(ref)
        await self._write(lambda: self._episode_file.append(sequence, encode_episode(sequence, outcome, facts)))
        self._spans.emit(sequence, outcome, [fact for _, fact in facts])
        await self.platform.fault("recorder.archived")

    async def _archive_blob(self, ref: BlobRef) -> None:
        try:
            data = await self.bus.get_blob(ref)
        except BlobMissingError as error:
            self._n_blobs_missing += 1
            self.log.error("a payload cannot be archived", episode=ref.episode, error=str(error))
            return
        await self._write(lambda: write_once(self._folder / BLOBS / ref.hash, data))

    # --- files ---

    async def _write(self, write: Callable[[], None], *, is_small: bool = False) -> None:
        """Write, and where the disk is full wait until it is not: nothing is purged meanwhile.

        What is small is written at once: going to a thread and back takes longer than a line that is not synced.
        """
        while True:
            try:
                write() if is_small else await self._in_thread(write)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise ArchiveError(f"{self._folder} cannot be written: {error}") from error
                self.log.error("the archive's disk is full: free some space", folder=str(self._folder))
                self.become(self.state, f"space on the disk of {self._folder}")
                await self.platform.sleep(DISK_RETRY_S)
                continue
            self.become(self.state)
            return

    async def _in_thread(self, call: Callable[[], None]) -> None:
        """A cancellation waits for the call: the next one must find the file as this one leaves it."""
        running = asyncio.ensure_future(asyncio.to_thread(call))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await running
            raise

    def _sync(self) -> None:
        self._episode_file.sync()
        self._outcome_file.sync()

    # --- what may be purged ---

    async def _follow(self, stream: str, take: Callable[[Stored], None], forget: Callable[[], None]) -> None:
        """Read a stream in order; from its start again when the broker has lost its tail."""
        while True:
            try:
                async with aclosing(self.bus.read(stream)) as reader:
                    async for stored in reader:
                        await self.is_fact(stored)
                        take(stored)
            except StreamRewoundError as error:
                self.log.warning("folding again", stream=stream, why=str(error))
                forget()

    def _forget_trace(self) -> None:
        self._trace_sequence = self._may_purge = 0
        self._first.clear()

    def _forget_policy(self) -> None:
        self._commits = []
        self._steps.forget_policy()

    def _on_trace(self, stored: Stored) -> None:
        self._trace_sequence = stored.sequence
        if stored.event is None:
            return
        self._spans.late(stored.event)
        episode = stored.key[-1] if stored.key else ""
        if episode not in self._names:
            self._first.setdefault(episode, stored.sequence)
        elif isinstance(stored.event, EpisodeFinished | ToolReturned) and _refers(stored.event):
            # A driver that was stopped for long has stored payloads again. The outcome is archived, so it is not after these.
            self._unsettled.append((max(self._taken, self._outcome_file.last), episode))

    def _on_policy(self, stored: Stored) -> None:
        self._steps.on_policy(stored)
        match stored.event:
            case CheckpointCommitted():
                self._commits = [*self._commits[-N_COMMITS:], stored.event]
            case TrainerClaimed():
                self._commits = [each for each in self._commits if each.step <= stored.event.step]
            case _:
                pass

    async def _keep_purging(self) -> None:
        while True:
            await self.platform.sleep(PURGE_EVERY_S)
            try:
                await self._purge()
            except BusError as error:
                self.log.warning("not purged", why=str(error))

    async def _purge(self) -> None:
        archived_up_to = min(self._taken, self._outcome_file.last)
        await self._in_thread(self._sync)
        await self._purge_trace()
        await self._purge_settled(archived_up_to)
        await self._steps.archive()
        await self.platform.fault("recorder.steps_archived")
        self._n_purged += await self._steps.purge()

    async def _purge_trace(self) -> None:
        """Drop what lies before the first fact of every open episode."""
        for _ in range(MAX_STRANGERS):
            oldest = min(self._first, key=lambda name: self._first[name], default=None)
            if oldest is None or oldest in self._known:
                break
            if is_key(oldest) and await self.bus.get_last(EpisodeRequested, oldest) is not None:
                self._known.add(oldest)
            else:
                self.log.warning("facts of an episode that nobody asked for are dropped", episode=oldest)
                self._first.pop(oldest, None)
        # A broker that lost a tail gives its sequences out again, and the reader has to hear of that first: so what may go is
        # said a round before it goes, and nothing is said in the round after a reconnect.
        as_of, self._as_of = self._as_of, self.bus.n_reconnects
        if as_of != self._as_of:
            self._may_purge = 0
            return
        up_to, self._may_purge = self._may_purge, min(self._first.values(), default=self._trace_sequence + 1) - 1
        if up_to > 0:
            self._n_purged += await self.bus.purge("trace", up_to_sequence=up_to, as_of=as_of)

    async def _purge_settled(self, archived_up_to: int) -> None:
        """Drop the blobs of settled episodes, then their outcomes: a crash in between leaves the outcomes, which name them."""
        found = await self.bus.get_last(PlanFolded, self.context.run)
        if found is not None and isinstance(found.event, PlanFolded):
            self._folded = max(self._folded, found.event.watermark)
        if len(self._commits) < 2:
            return
        up_to = min(archived_up_to, self._folded, *(each.watermark for each in self._commits[-2:]))
        while self._unsettled and self._unsettled[0][0] <= up_to:
            self._n_purged += await self.bus.purge("blobs", key=(self._unsettled[0][1],))
            self._unsettled.popleft()
        await self.platform.fault("recorder.blobs_purged")
        if up_to > 0:
            self._n_purged += await self.bus.purge("outcomes", up_to_sequence=up_to)


def _refers(event: Event) -> bool:
    return _only_copy(event) is not None or (isinstance(event, EpisodeFinished) and event.trajectory is not None)


def _only_copy(event: Event) -> BlobRef | None:
    """The payload of a fact that lies nowhere else. A trajectory can be folded again from the facts."""
    match event:
        case ToolReturned():
            return event.blob
        case EpisodeFinished():
            return event.generated_blob
        case _:
            return None


class _Head(msgspec.Struct):
    sequence: int
