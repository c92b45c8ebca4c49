"""The life of an actor: start, work on its queue, say that it is alive, drain on a signal.

A queued fact is decoded, handled under a deadline, its effects are stored, and only then is it acknowledged; while it is
handled the broker is told so. A fact that cannot be decoded, or fails too often, goes to DEAD with its bytes and the reason.
"""

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import structlog

from actors.runtime.bus import Bus, Delivery, Stored
from actors.runtime.dead_letters import bury
from actors.runtime.logs import about
from actors.runtime.platform import Platform
from actors.runtime.tracing import NO_TRACING, Tracing
from asearch.configuration.settings import Settings
from asearch.errors import AsearchError, BusError
from schemas.commands import Heartbeat
from schemas.events import Event
from schemas.records import Version
from schemas.topology import consumer_named, is_key

HEARTBEAT_S = 1.0
DRAIN_TIMEOUT_S = 10.0
DRAIN_TIMEOUTS_S = {"trainer": 30.0, "recorder": 120.0}
"""Kinds that need longer: the trainer finishes its step and writes a checkpoint, the recorder waits for the Parquet files."""
MAX_DELIVERIES = 5
"""Deliveries of one fact that may fail for an unexpected reason before it is dead."""
RETRY_DELAY_S = 1.0
MAX_BURIALS = 32
"""Refused messages on their way to DEAD at once, of one actor that reads in order."""


def drain_timeout_s(kind: str) -> float:
    """How long an actor of this kind may drain; its supervisor waits a little longer before it kills."""
    return DRAIN_TIMEOUTS_S.get(kind, DRAIN_TIMEOUT_S)


@dataclass
class Context:
    """What every actor gets: its run, its settings, the bus and the platform."""

    run: str
    run_dir: Path
    settings: Settings
    bus: Bus
    platform: Platform
    actor_id: str
    tracing: Tracing = NO_TRACING

    def __post_init__(self) -> None:
        if self.tracing.on:
            self.bus.traceparent_of = self.tracing.traceparent
        if not is_key(self.actor_id):
            raise ValueError(f"actor id {self.actor_id!r} may hold letters, digits, '-' and '_' only")


class Actor(ABC):
    """A process with one mailbox. Subclasses set `kind`, and `queue` if they work on a durable queue of the topology."""

    kind: ClassVar[str]
    queue: ClassVar[str | None] = None
    handle_timeout_s: ClassVar[float] = 120.0

    def __init__(self, context: Context) -> None:
        self.context = context
        self.bus = context.bus
        self.platform = context.platform
        self.settings = context.settings
        self.tracing = context.tracing
        self.log = structlog.get_logger().bind(run=context.run, actor=context.actor_id)
        self.state = "starting"
        self.waiting_for = ""
        self.version: Version | None = None
        self._stopping = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._burials = asyncio.Semaphore(MAX_BURIALS)
        self._said = asyncio.Event()
        self._leaves_by_ns = 0
        self.n_buried = 0
        self.n_dead_lost = 0

    # --- what a kind of actor fills in ---

    async def start(self) -> None:
        """Get ready: read state, open files, subscribe. The actor is `ready` when this returns."""

    async def abort_start(self) -> None:
        """Close what an interrupted `start` has opened, where the end of the process does not; `drain` is not called then."""

    @abstractmethod
    async def work(self) -> None:
        """The main loop. Returns when the actor's job is done or `stopping` is set; cancelled when draining takes too long."""

    async def handle(self, event: Event, stored: Stored) -> None:
        """Handle one fact of the queue and store every effect before returning."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Finish or hand over what is under way; called once, after `stopping` is set."""

    def gauges(self) -> dict[str, float]:
        """Numbers for the heartbeat."""
        return {}

    @property
    def concurrency(self) -> int:
        """Facts of the queue handled at once."""
        return 64

    # --- the life ---

    @property
    def stopping(self) -> bool:
        """Whether the actor has been asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask the actor to stop; it drains and ends."""
        self._stopping.set()

    async def wait_stopping(self) -> None:
        """Return once the actor has been asked to stop."""
        await self._stopping.wait()

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that lives no longer than the actor; its failure ends the actor."""
        if self._group is None:
            raise RuntimeError("the actor does not run")
        task = self._group.create_task(coroutine, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def run(self, drain_s: float | None = None) -> None:
        """Live from start to drain, which takes at most `drain_s` (the kind's own limit unless given).

        Raises what the actor died of.
        """
        limit_s = drain_timeout_s(self.kind) if drain_s is None else drain_s
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.spawn(self._beat(), "heartbeat")
            if await self._until_stopped(self.start()):
                await self._live(limit_s)
            else:
                self.become("draining", "an interrupted start")
                async with _bounded(limit_s):
                    await self.abort_start()
            for task in list(self._background):
                task.cancel()

    async def _live(self, drain_s: float) -> None:
        await self.platform.fault(f"{self.kind}.started")
        queue = await self.bus.consume(self.queue, self._deliver, concurrency=self.concurrency) if self.queue else None
        self.become("ready")
        await self._until_stopped(self.work())
        self._stopping.set()
        self._leaves_by_ns = self.platform.now_ns() + int(drain_s * 1e9)
        self.become("draining")
        async with _bounded(drain_s):
            # Before anything else: whoever hears it asks this actor nothing more.
            with contextlib.suppress(BusError):
                await self.beat_once()
            if queue is not None:
                await queue.drain(drain_s)
            await self.drain()
            await self._finish_burials()

    def become(self, state: str, waiting_for: str = "") -> None:
        """Change the state that heartbeats report; said at once, not at the next beat."""
        changed = (state, waiting_for) != (self.state, self.waiting_for)
        self.state, self.waiting_for = state, waiting_for
        if changed:
            self._said.set()
            self.log.info("state", state=state, waiting_for=waiting_for or None)

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work until it is done or the actor is asked to stop; whether it was done. Raises what the work raised."""
        worker = asyncio.create_task(work, name="work")
        stopper = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait({worker, stopper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopper.cancel()
            if not worker.done():
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker
        if worker.cancelled():
            return False
        worker.result()
        return True

    async def _beat(self) -> None:
        while True:
            self._said.clear()
            with contextlib.suppress(BusError):
                await self.beat_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._said.wait()

    async def beat_once(self) -> None:
        """Send one heartbeat."""
        await self.bus.publish(
            Heartbeat(
                actor=self.kind,
                actor_id=self.context.actor_id,
                pid=os.getpid(),
                at_ns=self.platform.now_ns(),
                state=self.state,
                waiting_for=self.waiting_for,
                version=self.version,
                leaves_by_ns=self._leaves_by_ns,
                gauges={**self._dead_letters(), **self.gauges()},
            ),
            key=self.context.actor_id,
        )

    def _dead_letters(self) -> dict[str, float]:
        """Messages that could not be read, messages put into DEAD (or found there), messages that DEAD did not take."""
        n_malformed = self.bus.gauges().get("n_malformed", 0.0)
        return {"n_malformed": n_malformed, "n_buried": self.n_buried, "n_dead_lost": self.n_dead_lost}

    # --- the queue ---

    async def _deliver(self, delivery: Delivery) -> None:
        stored = delivery.stored
        if stored.event is None:
            await self.bury(stored, stored.malformed or "malformed")
            await delivery.term()
            return
        keeper = asyncio.create_task(self._keep(delivery))
        try:
            async with asyncio.timeout(self.handle_timeout_s):
                await self.handle(stored.event, stored)
        except (AsearchError, TimeoutError) as error:
            await self._failed(delivery, error)
            return
        except Exception as error:
            self.log.exception("handler failed", **about(stored))
            await self._failed(delivery, error)
            return
        finally:
            keeper.cancel()
        await self.platform.fault(f"{self.kind}.before_ack")
        await delivery.ack()

    async def _failed(self, delivery: Delivery, error: Exception) -> None:
        stored = delivery.stored
        self.log.warning("fact not handled", **about(stored), n=delivery.n_delivered, error=str(error) or repr(error))
        if delivery.n_delivered >= MAX_DELIVERIES and not isinstance(error, BusError):
            await self.bury(stored, f"{type(error).__name__}: {error}")
            await self.poisoned(stored)
            await delivery.term()
            return
        await delivery.nak(RETRY_DELAY_S * delivery.n_delivered)

    async def poisoned(self, stored: Stored) -> None:
        """A fact is dead; say so to whoever waits for its effect."""

    async def bury(self, stored: Stored, reason: str) -> None:
        """Keep refused bytes in DEAD, once per message; what DEAD does not take is counted and logged, and never raised."""
        if await bury(self.bus, stored, self.kind, reason):
            self.n_buried += 1
        else:
            self.n_dead_lost += 1

    async def is_fact(self, stored: Stored) -> bool:
        """Whether a message that was read is a fact; one that is not goes to DEAD. For actors that read a stream in order.

        Burials go on beside the reading, at most MAX_BURIALS at once: one after the other they would hold it up.
        """
        if stored.event is not None:
            return True
        await self._burials.acquire()
        burying = self.spawn(self.bury(stored, stored.malformed or "malformed"), f"bury {stored.stream} {stored.sequence}")
        burying.add_done_callback(lambda _: self._burials.release())
        return False

    async def _finish_burials(self) -> None:
        for _ in range(MAX_BURIALS):
            await self._burials.acquire()

    async def _keep(self, delivery: Delivery) -> None:
        """Tell the broker that the fact is being worked on, three times per acknowledgement wait."""
        assert self.queue is not None  # noqa: S101
        interval_s = consumer_named(self.queue).ack_wait_s / 3
        while True:
            await self.platform.sleep(interval_s)
            with contextlib.suppress(BusError):
                await delivery.in_progress()


@contextlib.asynccontextmanager
async def _bounded(timeout_s: float) -> AsyncGenerator[None]:
    """Give up quietly at the timeout: the caller has nothing better to do than to end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            yield
