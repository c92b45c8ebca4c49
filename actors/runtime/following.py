"""Following a run from outside: its streams folded into a report, its heartbeats and queues at hand."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from actors.runtime.archive import read_outcomes
from actors.runtime.bus import Bus, ConsumerInfo, Incoming, Stored, StreamInfo
from actors.runtime.membership import read_membership
from asearch.errors import BusError, InputError, StreamRewoundError
from asearch.evaluation.report import STREAMS, RunReport
from asearch.traces.rows import RowTable
from asearch.traces.stages import StageTable
from schemas.archive import OUTCOMES
from schemas.commands import Heartbeat
from schemas.events import Event, EventRefused, EventRequeued
from schemas.topology import TOPOLOGY

RATE_WINDOW_S = 15.0
LOST_S = 5.0
"""Silence after which an actor is no longer taken for alive."""
POLL_S = 2.0


@dataclass
class Vitals:
    """The newest heartbeat of every actor, and how fast its counters grow."""

    latest: dict[str, Heartbeat] = field(default_factory=dict[str, Heartbeat])
    _past: dict[str, deque[Heartbeat]] = field(default_factory=dict[str, deque[Heartbeat]])

    def heard(self, heartbeat: Heartbeat) -> None:
        """Take a heartbeat."""
        self.latest[heartbeat.actor_id] = heartbeat
        past = self._past.setdefault(heartbeat.actor_id, deque(maxlen=64))
        if past and past[-1].pid != heartbeat.pid:
            past.clear()
        past.append(heartbeat)
        while len(past) > 2 and heartbeat.at_ns - past[0].at_ns > RATE_WINDOW_S * 1e9:
            past.popleft()

    def forget(self, actor_id: str) -> None:
        """It is not there any more, in order."""
        self.latest.pop(actor_id, None)
        self._past.pop(actor_id, None)

    def rate(self, actor_id: str, gauge: str) -> float | None:
        """How much a counter has grown per second over the last RATE_WINDOW_S; None without two heartbeats of one process."""
        past = self._past.get(actor_id)
        if not past or len(past) < 2 or gauge not in past[-1].gauges:
            return None
        span_s = (past[-1].at_ns - past[0].at_ns) / 1e9
        return (past[-1].gauges[gauge] - past[0].gauges.get(gauge, 0.0)) / span_s if span_s > 0 else None

    def total_rate(self, kind: str, gauge: str) -> float | None:
        """The rate over all actors of a kind."""
        rates = [self.rate(name, gauge) for name, heartbeat in self.latest.items() if heartbeat.actor == kind]
        known = [rate for rate in rates if rate is not None]
        return sum(known) if known else None

    def age_s(self, actor_id: str, now_ns: int) -> float | None:
        """Seconds since the actor was last heard of."""
        found = self.latest.get(actor_id)
        return None if found is None else max(0.0, (now_ns - found.at_ns) / 1e9)


@dataclass
class DeadLetters:
    """How many messages were refused, and how many of these were appended again."""

    n_refused: int = 0
    n_requeued: int = 0
    folded: int = 0
    """The last sequence of DEAD that was counted."""

    async def catch_up(self, bus: Bus, info: StreamInfo) -> None:
        """Count what DEAD holds beyond what was counted; from its beginning, where it has lost its tail."""
        if info.last_sequence < self.folded:
            self.n_refused = self.n_requeued = self.folded = 0
        if info.last_sequence == self.folded:
            return
        async with contextlib.aclosing(bus.read("dead", start_sequence=self.folded + 1, follow=False)) as reader:
            async for stored in reader:
                self.n_requeued += isinstance(stored.event, EventRequeued)
                self.n_refused += stored.event is None or isinstance(stored.event, EventRefused)
                self.folded = stored.sequence


@dataclass
class View:
    """What is known of a run at this moment."""

    report: RunReport = field(default_factory=RunReport)
    vitals: Vitals = field(default_factory=Vitals)
    queues: dict[str, ConsumerInfo] = field(default_factory=dict[str, ConsumerInfo])
    streams: dict[str, StreamInfo] = field(default_factory=dict[str, StreamInfo])
    dead: DeadLetters = field(default_factory=DeadLetters)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when something was folded; whoever waits for it clears it."""
    run_dir: Path | None = None
    """Where the archive lies that holds the outcomes which are purged."""
    rows: RowTable | None = None
    """A row an episode, where somebody wants them."""
    stages: StageTable | None = None
    """Where every episode stands, where somebody wants that: TRACE is read for it."""
    on_folded: Callable[[Stored], None] | None = None
    """Hears every message after it was folded, those from the archive not."""

    def kept_engines(self) -> frozenset[str] | None:
        """The engines that the run keeps alive; None where nobody says so, as on hosts."""
        if self.run_dir is None:
            return None
        with contextlib.suppress(InputError):
            found = read_membership(self.run_dir)
            return None if found is None else frozenset(found.engines)
        return None

    def forget_left_engines(self, now_ns: int) -> None:
        """Engines that are silent and that the run does not keep alive have left; nobody misses them."""
        kept = self.kept_engines()
        latest = self.vitals.latest
        for name in [name for name, beat in latest.items() if beat.actor == "engine"]:
            if kept is not None and name not in kept and now_ns - latest[name].at_ns > LOST_S * 1e9:
                self.vitals.forget(name)

    @property
    def followed(self) -> tuple[str, ...]:
        """The streams that are folded; TRACE last, so that requests and outcomes are mostly known before an episode's facts."""
        return STREAMS if self.stages is None else (*STREAMS, "trace")

    def folded(self, stream: str) -> int:
        """The last sequence of a stream that was folded."""
        if stream in STREAMS:
            return self.report.folded[stream]
        return 0 if self.stages is None else self.stages.rows.folded[stream]

    async def catch_up(self, bus: Bus) -> None:
        """Fold what the streams hold now, whether or not the followers have come that far."""
        for stream in self.followed:
            begin = self.folded(stream) + 1
            async with contextlib.aclosing(bus.read(stream, start_sequence=begin, follow=False)) as reader:
                async for stored in reader:
                    self.fold(stored)
        self.fill((await bus.stream_info("outcomes")).first_sequence)
        self.changed.set()

    def fold(self, stored: Stored) -> None:
        """Take the next message of a stream; outcomes that were purged before it come from the archive."""
        if stored.stream == "outcomes":
            self.fill(stored.sequence)
        self._take(stored.stream, stored.sequence, stored.event)
        if self.on_folded is not None:
            self.on_folded(stored)

    def _take(self, stream: str, sequence: int, event: Event | None) -> None:
        if self.stages is not None:
            self.stages.fold(stream, sequence, event)
        if stream not in STREAMS:
            return
        self.report.fold(stream, sequence, event)
        if self.rows is not None:
            self.rows.fold(stream, sequence, event)

    def begin_anew(self) -> None:
        """Forget what was folded: the broker has lost the tail of a stream."""
        self.report = RunReport()
        if self.rows is not None:
            self.rows = RowTable()
        if self.stages is not None:
            self.stages = StageTable()

    def fill(self, before: int) -> None:
        """Fold the outcomes before a sequence that the report lacks: they were archived before they were purged."""
        if self.run_dir is None or self.report.folded["outcomes"] >= before - 1:
            return
        for line in read_outcomes(self.run_dir / "archive" / OUTCOMES):
            if line.sequence < before:
                self._take("outcomes", line.sequence, line.outcome)


@contextlib.asynccontextmanager
async def follow(
    bus: Bus, run_dir: Path | None = None, *, with_rows: bool = False, with_stages: bool = False
) -> AsyncGenerator[View]:
    """A view of the run that is kept up to date until the block is left; what is there already is folded first.

    `run_dir` holds the archive: without it, outcomes that are purged are missing.
    """
    rows, stages = RowTable() if with_rows else None, StageTable() if with_stages else None
    view = View(run_dir=run_dir, rows=rows, stages=stages)

    async def on_heartbeat(incoming: Incoming) -> None:
        if isinstance(incoming.message, Heartbeat):
            view.vitals.heard(incoming.message)

    subscription = await bus.subscribe(Heartbeat, ">", on_heartbeat)
    await view.catch_up(bus)
    async with asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(_follow_streams(bus, view), name="follow")]
        followers.append(tasks.create_task(_poll_queues(bus, view), name="poll queues"))
        try:
            yield view
        finally:
            for follower in followers:
                follower.cancel()
            await subscription.drain(1.0)


async def _follow_streams(bus: Bus, view: View) -> None:
    """Read the three streams side by side; begin anew when the broker has lost the tail of one."""
    while True:
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream in view.followed:
                    tasks.create_task(_follow_stream(bus, view, stream), name=f"follow {stream}")
        except* StreamRewoundError:
            view.begin_anew()


async def _follow_stream(bus: Bus, view: View, stream: str) -> None:
    begin = view.folded(stream) + 1
    async with contextlib.aclosing(bus.read(stream, start_sequence=begin)) as reader:
        async for stored in reader:
            view.fold(stored)
            view.changed.set()


async def _poll_queues(bus: Bus, view: View) -> None:
    """Forget engines that left; ask how much waits in every durable queue, how full the streams are, what came to DEAD."""
    while True:
        view.forget_left_engines(bus.platform.now_ns())
        for consumer in TOPOLOGY.consumers:
            with contextlib.suppress(BusError):
                view.queues[consumer.name] = await bus.consumer_info(consumer.name)
        for stream in TOPOLOGY.streams:
            with contextlib.suppress(BusError):
                view.streams[stream.name] = await bus.stream_info(stream.name)
        with contextlib.suppress(BusError):
            if "dead" in view.streams:
                await view.dead.catch_up(bus, view.streams["dead"])
        await bus.platform.sleep(POLL_S)
