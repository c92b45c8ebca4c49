"""The bus in memory: the same contract without a broker process, for the simulation and for tests."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence

from actors.runtime import blobs
from actors.runtime.bus import APPEND_TIMEOUT_S, Bus, ConsumerInfo, CoreHandler, Handler, Scope, Stored, StreamInfo
from actors.runtime.core import CoreSubscription
from actors.runtime.decoding import backoff_s, stored_of
from actors.runtime.memory_broker import MemoryBroker, MemoryQueue, MemoryStream, Record, Worker, matches
from actors.runtime.platform import Platform
from actors.runtime.routes import Route, core_target, read_filters, route
from actors.runtime.waking import Signal
from asearch.errors import BusError, ConflictError, NoResponderError, RequestTimeoutError, StreamRewoundError
from schemas import topology
from schemas.codec import MalformedError, decode_message, encode
from schemas.commands import Message
from schemas.events import Event
from schemas.records import BlobRef

log = logging.getLogger(__name__)

IN_DOUBT_RETRY_S = 0.5


class MemoryDelivery:
    """One delivery."""

    __slots__ = ("_broker", "_queue", "n_delivered", "stored")

    def __init__(self, broker: MemoryBroker, queue: MemoryQueue, stored: Stored, n_delivered: int) -> None:
        self._broker = broker
        self._queue = queue
        self.stored = stored
        self.n_delivered = n_delivered

    async def ack(self) -> None:
        """The work is done."""
        if not self._broker.faults.lose_ack(self.stored.subject):
            self._queue.settle(self.stored.sequence)

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver again after the delay."""
        self._queue.give_back(self.stored.sequence, delay_s)

    async def in_progress(self) -> None:
        """Start the acknowledgement wait over."""
        held = self._queue.outstanding.get(self.stored.sequence)
        if held is not None and not held.waiting:
            self._queue.extend(held, self._queue.row.ack_wait_s)

    async def term(self) -> None:
        """Never deliver again."""
        self._queue.settle(self.stored.sequence)


class MemorySubscription:
    """A worker of a durable queue."""

    def __init__(self, bus: "MemoryBus", queue: MemoryQueue, handler: Handler, concurrency: int) -> None:
        self._bus = bus
        self._queue = queue
        self._handler = handler
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._worker = Worker(max(1, concurrency), self._deliver)
        queue.workers.append(self._worker)
        queue.dispatch()

    def _deliver(self, record: Record, n_delivered: int) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(record, n_delivered))
        self._running.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._worker.n_running -= 1
        self._queue.dispatch()

    async def _handle(self, record: Record, n_delivered: int) -> None:
        stored = self._bus.decoded(self._queue.row.stream, record)
        delivery = MemoryDelivery(self._bus.broker, self._queue, stored, n_delivered)
        await self._bus.linger("deliver", record.subject)
        try:
            await self._handler(delivery)
        except asyncio.CancelledError:
            if not self._bus.is_closed:
                await delivery.nak()
            raise
        except Exception:
            log.exception("handler of queue %s failed on %s", self._queue.row.name, record.subject)
            await delivery.nak(backoff_s(n_delivered))

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for running handlers, cancel the rest after the timeout."""
        self._leave()
        deadline = self._bus.platform.monotonic() + timeout_s
        while self._running and self._bus.platform.monotonic() < deadline:
            await self._bus.platform.sleep(0.005)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def wait(self) -> None:
        """Return when stopped."""
        await self._stopped.wait()

    def cancel(self) -> None:
        """Stop at once, as a killed process does: what was delivered comes again after its wait."""
        self._leave()
        for task in self._running:
            task.cancel()

    def _leave(self) -> None:
        self._stopped.set()
        with contextlib.suppress(ValueError):
            self._queue.workers.remove(self._worker)


class MemoryBus(Bus):
    """One actor's connection to a run on a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, run: str, actor: str, platform: Platform) -> None:
        if not topology.is_key(run):
            raise BusError(f"{run!r} cannot name a run: use letters, digits, '-' and '_'")
        self.broker = broker
        self.run = run
        self.actor = actor
        self.platform = platform
        self.is_closed = False
        self._subscriptions: list[MemorySubscription | CoreSubscription] = []
        self._counters: dict[str, float] = {"n_malformed": 0.0, "n_slow_consumer": 0.0, "n_append_retries": 0.0}

    @property
    def n_reconnects(self) -> int:
        return self.broker.n_reconnects

    async def linger(self, action: str, subject: str) -> None:
        """Take the time that the broker's faults give the action; yields in any case."""
        await self.platform.sleep(self.broker.faults.delay_s(action, subject))

    def _check_open(self) -> None:
        if self.is_closed:
            raise BusError(f"the connection of {self.actor} is closed")

    async def append(
        self,
        event: Event,
        *key: str,
        expected: int | None = None,
        scope: Scope = Scope.KEY,
        timeout_s: float = APPEND_TIMEOUT_S,
        traceparent: str | None = None,
    ) -> int:
        target = route(self.run, event, key)
        data = encode(event)
        await self.platform.fault("bus.append")
        deadline = self.platform.monotonic() + timeout_s
        while True:
            self._check_open()
            await self.linger("append", target.subject)
            record = Record(target.subject, 0, data, event.id, self.platform.now_ns(), traceparent)
            sequence = self._store(target, record, expected, scope)
            if not self.broker.faults.lose_acknowledgement(target.subject):
                await self.platform.fault("bus.appended")
                return sequence
            self._counters["n_append_retries"] += 1
            if self.platform.monotonic() + IN_DOUBT_RETRY_S > deadline:
                raise BusError(f"an append to {target.subject} is not known to be stored after {timeout_s:g} s")
            await self.platform.sleep(IN_DOUBT_RETRY_S)

    def _store(self, target: Route, record: Record, expected: int | None, scope: Scope) -> int:
        stream = self.broker.stream(self.run, target.stream)
        try:
            sequence, known = stream.append(record, self.platform.monotonic(), expected, scope is Scope.STREAM)
        except ConflictError:
            there = None if expected is None else _first_after(stream, record, expected, scope)
            if there is None or there.message_id != record.message_id or there.data != record.data:
                raise
            return there.sequence
        if known and expected is not None:
            raise ConflictError(f"the id {record.message_id!r} is already used in stream {target.stream}, at {sequence}")
        return sequence

    async def read(
        self,
        stream: str,
        *,
        events: Sequence[type[Event]] = (),
        key: Sequence[str] = (),
        start_sequence: int = 1,
        follow: bool = True,
    ) -> AsyncGenerator[Stored, None]:
        filters = read_filters(self.run, stream, events, key)
        held = self.broker.stream(self.run, stream)
        end = None if follow else held.last_sequence
        position = start_sequence - 1
        n_rewinds = len(held.rewinds)
        signal = Signal()
        held.readers[signal] = None
        try:
            while end is None or position < end:
                self._check_open()
                lowest = min(held.rewinds[n_rewinds:], default=held.last_sequence)
                if min(lowest, held.last_sequence) < position:
                    raise StreamRewoundError(f"stream {stream} ended at {lowest}, but was read up to {position}")
                n_rewinds = len(held.rewinds)
                if position == held.last_sequence:
                    await signal.wait()
                    continue
                position += 1
                record = held.records.get(position)
                if record is not None and (not filters or any(matches(each, record.subject) for each in filters)):
                    await self.linger("read", record.subject)
                    yield self.decoded(stream, record)
        finally:
            held.readers.pop(signal, None)

    def decoded(self, stream: str, record: Record) -> Stored:
        """A record as the port shows it."""
        stored = stored_of(stream, record.subject, record.sequence, record.data, record.at_ns, record.traceparent)
        if stored.malformed is not None:
            self._count("n_malformed")
        return stored

    async def consume(self, consumer: str, handler: Handler, *, concurrency: int) -> MemorySubscription:
        self._check_open()
        queue = self.broker.queue(self.run, consumer)
        subscription = MemorySubscription(self, queue, handler, concurrency)
        self._subscriptions.append(subscription)
        return subscription

    async def get_last(self, event: type[Event], *key: str) -> Stored | None:
        stream = topology.fact_of(event).stream
        subject = topology.subject(self.run, event, *key)
        found = [each for each in await self.read_key(stream, *key) if each.subject == subject]
        return found[-1] if found else None

    async def read_key(self, stream: str, *key: str) -> list[Stored]:
        self._check_open()
        await self.linger("read", "")
        held = self.broker.stream(self.run, stream)
        return [self.decoded(stream, held.records[each]) for each in held.by_key.get(".".join(key), ())]

    async def last_sequence(self, stream: str) -> int:
        return (await self.stream_info(stream)).last_sequence

    async def stream_info(self, stream: str) -> StreamInfo:
        self._check_open()
        await self.platform.sleep(0.0)
        held = self.broker.stream(self.run, stream)
        first = min(held.records, default=held.last_sequence + 1)
        n = len(held.records)
        return StreamInfo(stream, held.epoch, first, held.last_sequence, n, held.n_bytes, held.max_bytes)

    async def consumer_info(self, consumer: str) -> ConsumerInfo:
        await self.platform.sleep(0.0)
        queue = self.broker.queue(self.run, consumer)
        again = sum(1 for held in queue.outstanding.values() if held.n_delivered > 1)
        return ConsumerInfo(consumer, len(queue.todo), len(queue.outstanding), again, queue.row.max_ack_pending)

    async def purge(self, stream: str, *, up_to_sequence: int | None = None, key: Sequence[str] = ()) -> int:
        self._check_open()
        await self.platform.sleep(0.0)
        held = self.broker.stream(self.run, stream)
        filters = read_filters(self.run, stream, (), key)
        doomed = [
            record.sequence
            for record in held.records.values()
            if (up_to_sequence is None or record.sequence <= up_to_sequence)
            and (not filters or matches(filters[0], record.subject))
        ]
        for sequence in doomed:
            held.delete(sequence)
        return len(doomed)

    async def put_blob(self, episode: str, data: bytes) -> BlobRef:
        return await blobs.put_blob(self, episode, data)

    async def get_blob(self, ref: BlobRef) -> bytes:
        return await blobs.get_blob(self, ref)

    def core_subject(self, message: type[Message], key: str) -> str:
        return topology.core_subject(self.run, message, key)

    async def publish(
        self, message: Message, *, key: str | None = None, subject: str | None = None, traceparent: str | None = None
    ) -> None:
        self._check_open()
        target = core_target(self.run, message, key, subject)
        await self.linger("core", target)
        for listener in self.broker.listeners(target):
            listener.offer((target, "", encode(message), traceparent))

    async def request(
        self,
        message: Message,
        *,
        key: str | None = None,
        subject: str | None = None,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> Message:
        self._check_open()
        target = core_target(self.run, message, key, subject)
        await self.linger("core", target)
        listeners = self.broker.listeners(target)
        if not listeners:
            raise NoResponderError(f"nobody listens on {target}")
        inbox = f"_INBOX.{self.platform.new_id()}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.broker.replies[inbox] = future
        timer = asyncio.get_running_loop().create_task(self._time_out(future, target, timeout_s))
        try:
            for listener in listeners:
                listener.offer((target, inbox, encode(message), traceparent))
            answer = await future
        finally:
            timer.cancel()
            del self.broker.replies[inbox]
        try:
            return decode_message(answer)
        except MalformedError as error:
            self._count("n_malformed")
            raise BusError(f"the answer on {target} cannot be read: {error}") from error

    async def _time_out(self, future: "asyncio.Future[bytes]", target: str, timeout_s: float) -> None:
        await self.platform.sleep(timeout_s)
        if not future.done():
            future.set_exception(RequestTimeoutError(f"no answer on {target} within {timeout_s:g} s"))

    async def _reply(self, subject: str, data: bytes) -> None:
        future = self.broker.replies.get(subject)
        if future is not None and not future.done():
            future.set_result(data)

    async def subscribe(self, message: type[Message], key: str, handler: CoreHandler) -> CoreSubscription:
        self._check_open()
        subject = topology.core_subject(self.run, message, key)
        held = self.broker.core.setdefault(subject, [])

        async def close() -> None:
            if subscription in held:
                held.remove(subscription)

        subscription = CoreSubscription(subject, handler, self._reply, close=close, count=self._count)
        held.append(subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def ensure_topology(self, max_bytes: Mapping[str, int] | None = None) -> None:
        await self.platform.sleep(0.0)
        self.broker.ensure(self.run, dict(max_bytes or {}))

    async def delete_topology(self) -> None:
        await self.platform.sleep(0.0)
        self.broker.forget(self.run)

    def _count(self, name: str) -> None:
        self._counters[name] += 1

    def gauges(self) -> dict[str, float]:
        return dict(self._counters)

    async def drain(self, timeout_s: float = 10.0) -> None:
        for subscription in self._subscriptions:
            await subscription.drain(timeout_s)
        await self.close()

    async def close(self) -> None:
        self.is_closed = True
        for subscription in self._subscriptions:
            subscription.cancel()
        for held in self.broker.core.values():
            held[:] = [each for each in held if each not in self._subscriptions]


def _first_after(stream: MemoryStream, record: Record, expected: int, scope: Scope) -> Record | None:
    if scope is Scope.STREAM:
        return stream.records.get(expected + 1)
    sequences = stream.by_key.get(".".join(record.subject.split(".")[5:]), [])
    return next((stream.records[each] for each in sequences if each > expected), None)
