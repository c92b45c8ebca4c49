"""A durable queue of the in-memory broker, and what a worker gets of it."""

import asyncio
import contextlib
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.runtime.bus import Handler, Stored
from actors.runtime.decoding import backoff_s
from actors.runtime.memory_stream import MemoryStream, Record, matches
from actors.runtime.platform import Platform
from schemas import topology

log = logging.getLogger(__name__)


class Broker(Protocol):
    """What a queue needs of its broker."""

    platform: Platform
    is_up: bool

    def later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back in the broker's own context."""
        ...

    def redelivers(self, subject: str) -> None:
        """Told of every further delivery of a message."""
        ...

    def takes_late_ack(self, subject: str) -> None:
        """Told of an ack of a delivery that was followed by another one."""
        ...

    def delivers_twice(self, subject: str) -> bool:
        """Whether a fault delivers this message to two handlers."""
        ...


@dataclass(slots=True, eq=False)
class Outstanding:
    """A message that was delivered and not acknowledged."""

    record: Record
    n_delivered: int
    deadline: float
    waiting: bool = False
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Worker:
    """A subscription to a queue: `deliver` starts its handler; nothing reaches it while it is not connected."""

    concurrency: int
    deliver: Callable[[Record, int], None]
    is_connected: Callable[[], bool]
    n_running: int = 0

    @property
    def is_free(self) -> bool:
        """Whether a message can be delivered to it."""
        return self.n_running < self.concurrency and self.is_connected()


class MemoryQueue:
    """A durable queue. A message past its wait, or given back, is delivered again; `max_ack_pending` bounds what is out."""

    def __init__(self, row: topology.Consumer, stream: MemoryStream, filters: list[str], broker: Broker) -> None:
        self.row = row
        self._stream = stream
        self._filters = filters
        self._broker = broker
        self.todo: deque[Record] = deque()
        self.again: deque[int] = deque()
        self.outstanding: dict[int, Outstanding] = {}
        self.workers: deque[Worker] = deque()
        stream.on_append.append(self._offer)
        stream.on_lost.append(self._forget_after)
        for record in list(stream.records.values()):
            self._offer(record)

    def _offer(self, record: Record) -> None:
        if any(matches(each, record.subject) for each in self._filters):
            self.todo.append(record)
            self.dispatch()

    def dispatch(self) -> None:
        """Deliver while there is a message and a free handler, to the workers in turn."""
        while self._broker.is_up and (self.again or (self.todo and len(self.outstanding) < self.row.max_ack_pending)):
            if not any(each.is_free for each in self.workers):
                return
            held = self._next()
            if held is None:
                continue
            held.waiting = False
            self.extend(held, self.row.ack_wait_s)
            self._start(held)
            if self._broker.delivers_twice(held.record.subject):
                held.n_delivered += 1
                self._start(held)

    def _next(self) -> Outstanding | None:
        """The next message to deliver; None if it has been settled or purged meanwhile."""
        if not self.again:
            record = self.todo.popleft()
            if self._stream.records.get(record.sequence) is not record:
                return None
            held = self.outstanding[record.sequence] = Outstanding(record, 1, 0.0)
            return held
        held = self.outstanding.get(self.again.popleft())
        if held is None or not held.waiting:
            return None
        if self._stream.records.get(held.record.sequence) is not held.record:
            del self.outstanding[held.record.sequence]
            return None
        held.n_delivered += 1
        self._broker.redelivers(held.record.subject)
        return held

    def _start(self, held: Outstanding) -> None:
        worker = self._free_worker()
        if worker is not None:
            worker.n_running += 1
            worker.deliver(held.record, held.n_delivered)

    def _free_worker(self) -> Worker | None:
        for _ in range(len(self.workers)):
            worker = self.workers[0]
            self.workers.rotate(-1)
            if worker.is_free:
                return worker
        return None

    def extend(self, held: Outstanding, delay_s: float) -> None:
        """Deliver again unless something happens within the delay."""
        held.deadline = self._broker.platform.monotonic() + delay_s
        if held.timer is None:
            held.timer = self._broker.later(delay_s, lambda: self._expire(held))

    def give_back(self, sequence: int, delay_s: float) -> None:
        """Deliver again after the delay."""
        held = self.outstanding.get(sequence)
        if held is None or held.waiting:
            return
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        if delay_s > 0:
            self.extend(held, delay_s)
        else:
            self._requeue(held)

    def _expire(self, held: Outstanding) -> None:
        left_s = held.deadline - self._broker.platform.monotonic()
        if left_s > 1e-6:
            held.timer = self._broker.later(left_s, lambda: self._expire(held))
            return
        held.timer = None
        self._requeue(held)

    def _requeue(self, held: Outstanding) -> None:
        held.waiting = True
        self.again.append(held.record.sequence)
        self.dispatch()

    def settle(self, sequence: int, n_delivered: int) -> None:
        """Never deliver again. The ack of an earlier delivery counts too."""
        held = self.outstanding.pop(sequence, None)
        if held is not None and held.timer is not None:
            held.timer.cancel()
        if held is not None and n_delivered < held.n_delivered:
            self._broker.takes_late_ack(held.record.subject)
        self.dispatch()

    def _forget_after(self, last_sequence: int) -> None:
        """Forget messages that the stream has lost."""
        self.todo = deque(record for record in self.todo if record.sequence <= last_sequence)
        for sequence in [each for each in self.outstanding if each > last_sequence]:
            held = self.outstanding.pop(sequence)
            if held.timer is not None:
                held.timer.cancel()


class Client(Protocol):
    """What a subscription needs of its connection."""

    platform: Platform

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the broker hears it."""
        ...

    @property
    def n_reconnects(self) -> int:
        """How often it was lost and made again."""
        ...

    def answer(self, subject: str, effect: Callable[[], None], may_be_lost: bool) -> None:
        """Send an acknowledgement; the broker acts on it when it arrives, if it does."""
        ...

    def decoded(self, stream: str, record: Record) -> Stored:
        """A record as the port shows it."""
        ...

    async def linger(self, action: str, subject: str) -> None:
        """Take the time that the action takes."""
        ...


class MemoryDelivery:
    """One delivery. It is answered over the connection on which it came, or not at all: after a lost tail its sequence may be
    another fact's."""

    __slots__ = ("_client", "_connection", "_queue", "n_delivered", "stored")

    def __init__(self, client: Client, queue: MemoryQueue, stored: Stored, n_delivered: int) -> None:
        self._client = client
        self._connection = client.n_reconnects
        self._queue = queue
        self.stored = stored
        self.n_delivered = n_delivered

    async def ack(self) -> None:
        """The work is done."""
        self._answer(lambda: self._queue.settle(self.stored.sequence, self.n_delivered), may_be_lost=True)

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver again after the delay."""
        self._answer(lambda: self._queue.give_back(self.stored.sequence, delay_s))

    async def in_progress(self) -> None:
        """Start the acknowledgement wait over."""
        self._answer(self._extend)

    def _extend(self) -> None:
        held = self._queue.outstanding.get(self.stored.sequence)
        if held is not None and not held.waiting:
            self._queue.extend(held, self._queue.row.ack_wait_s)

    async def term(self) -> None:
        """Never deliver again."""
        self._answer(lambda: self._queue.settle(self.stored.sequence, self.n_delivered))

    def _answer(self, effect: Callable[[], None], may_be_lost: bool = False) -> None:
        if self._client.is_connected and self._client.n_reconnects == self._connection:
            self._client.answer(self.stored.subject, effect, may_be_lost)


class MemorySubscription:
    """A worker of a durable queue. Its handlers run in the context of whoever subscribed, not of whoever appended."""

    def __init__(self, client: Client, queue: MemoryQueue, handler: Handler, concurrency: int) -> None:
        self._client = client
        self._queue = queue
        self._handler = handler
        self._context = contextvars.copy_context()
        self._running: dict[asyncio.Task[None], None] = {}
        self._stopped = asyncio.Event()
        self._worker = Worker(max(1, concurrency), self._deliver, lambda: client.is_connected)
        queue.workers.append(self._worker)
        queue.dispatch()

    def _deliver(self, record: Record, n_delivered: int) -> None:
        self._context.copy().run(self._start, record, n_delivered)

    def _start(self, record: Record, n_delivered: int) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(record, n_delivered))
        self._running[task] = None
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._worker.n_running -= 1
        self._queue.dispatch()

    async def _handle(self, record: Record, n_delivered: int) -> None:
        stored = self._client.decoded(self._queue.row.stream, record)
        delivery = MemoryDelivery(self._client, self._queue, stored, n_delivered)
        await self._client.linger("deliver", record.subject)
        try:
            await self._handler(delivery)
        except asyncio.CancelledError:
            if not self._client.is_closed:
                await delivery.nak()
            raise
        except Exception:
            log.exception("handler of queue %s failed on %s", self._queue.row.name, record.subject)
            await delivery.nak(backoff_s(n_delivered))

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for running handlers, cancel the rest after the timeout."""
        self.leave()
        deadline = self._client.platform.monotonic() + timeout_s
        while self._running and self._client.platform.monotonic() < deadline:
            await self._client.platform.sleep(0.005)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def wait(self) -> None:
        """Return when stopped."""
        await self._stopped.wait()

    def cancel(self) -> None:
        """Stop at once, as a process that ends does: what was delivered comes again after its wait."""
        self.leave()
        for task in self._running:
            task.cancel()

    def leave(self) -> None:
        """The broker delivers nothing more to this worker."""
        self._stopped.set()
        with contextlib.suppress(ValueError):
            self._queue.workers.remove(self._worker)
