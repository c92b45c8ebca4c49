"""The bus in memory: the same contract without a broker process, for the simulation and for tests."""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from actors.runtime import blobs
from actors.runtime.bus import APPEND_TIMEOUT_S, Bus, ConsumerInfo, CoreHandler, Handler, Scope, Stored, StreamInfo
from actors.runtime.core import CoreSubscription
from actors.runtime.decoding import stored_of
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.memory_queue import MemorySubscription
from actors.runtime.memory_stream import MemoryStream, Record, matches
from actors.runtime.memory_wire import CONNECT_TIMEOUT_S, MemoryWire, Unanswered
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

IN_DOUBT_RETRY_S = 5.0
REPEAT_S = 0.1


class MemoryBus(Bus):
    """One actor's connection to a run on a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, run: str, actor: str, platform: Platform) -> None:
        if not topology.is_key(run):
            raise BusError(f"{run!r} cannot name a run: use letters, digits, '-' and '_'")
        self.broker = broker
        self.run = run
        self.actor = actor
        self.platform = platform
        self.traceparent_of = None
        self._wire = MemoryWire(broker, actor, platform)
        self._subscriptions: list[MemorySubscription | CoreSubscription] = []
        self._signals: dict[Signal, MemoryStream] = {}
        self._counters: dict[str, float] = {"n_malformed": 0.0, "n_slow_consumer": 0.0, "n_append_retries": 0.0}

    async def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Wait for the connection. Raises BusError if the broker stays away."""
        await self._wire.open(timeout_s)

    @property
    def is_connected(self) -> bool:
        """Whether the broker hears this connection."""
        return self._wire.is_connected

    @property
    def is_closed(self) -> bool:
        """Whether the connection was closed."""
        return self._wire.is_closed

    @property
    def n_reconnects(self) -> int:
        return self._wire.n_reconnects + self.broker.n_outages

    @property
    def wire(self) -> MemoryWire:
        """The connection."""
        return self._wire

    async def linger(self, action: str, subject: str) -> None:
        """Take the time that the broker's faults give the action; yields in any case."""
        await self.platform.sleep(self.broker.faults.delay_s(action, subject))

    def answer(self, subject: str, effect: Callable[[], None], may_be_lost: bool) -> None:
        """Send an acknowledgement; the broker acts on it when it arrives, if it does."""
        if may_be_lost and self.broker.faults.lose_ack(subject):
            return
        self._wire.send("ack", subject, effect)

    # --- streams ---

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
        if self.traceparent_of is not None:
            traceparent = traceparent or self.traceparent_of(event)
        data = encode(event)
        await self.platform.fault("bus.append")
        record = Record(target.subject, 0, data, event.id, 0, traceparent)
        try:
            sequence, known = await self._publish(target, record, expected, scope, timeout_s)
        except ConflictError:
            if expected is None:
                raise
            sequence = await self._own_append(target, record, expected, scope)
            if sequence is None:
                raise
            return sequence
        if known and expected is not None:
            raise ConflictError(f"the id {event.id!r} is already used in stream {target.stream}, at {sequence}")
        await self.platform.fault("bus.appended")
        return sequence

    async def _publish(
        self, target: Route, record: Record, expected: int | None, scope: Scope, timeout_s: float
    ) -> tuple[int, bool]:
        """Send it until the broker answers. Raises ConflictError, StreamFullError, or BusError at the timeout."""
        deadline_s = self.platform.monotonic() + timeout_s

        def store() -> tuple[int, bool]:
            stream = self.broker.stream(self.run, target.stream)
            fresh = Record(record.subject, 0, record.data, record.message_id, self.platform.now_ns(), record.traceparent)
            return stream.append(fresh, self.platform.monotonic(), expected, scope is Scope.STREAM)

        while True:
            self._wire.check_open()
            left_s = deadline_s - self.platform.monotonic()
            if left_s <= 0:
                raise BusError(f"an append to {target.subject} is not known to be stored after {timeout_s:g} s")
            if not await self._wire.until_connected(left_s):
                continue
            try:
                patience_s = min(IN_DOUBT_RETRY_S, left_s)
                return await self._wire.exchange("append", target.subject, store, patience_s, lossy=True)
            except Unanswered:
                self._counters["n_append_retries"] += 1

    async def _own_append(self, target: Route, record: Record, expected: int, scope: Scope) -> int | None:
        """The sequence of exactly this message if it follows `expected`: an earlier try has succeeded unnoticed."""
        held = self.broker.stream(self.run, target.stream)
        there = await self._wire.ask(target.subject, lambda: _first_after(held, record, expected, scope))
        if there is not None and there.message_id == record.message_id and there.data == record.data:
            return there.sequence
        return None

    async def append_bytes(self, subject: str, data: bytes, message_id: str) -> int:
        stream = subject.split(".")[2]
        record = Record(subject, 0, data, message_id, self.platform.now_ns(), None)
        target = Route(stream, subject, "")
        return (await self._publish(target, record, None, Scope.KEY, APPEND_TIMEOUT_S))[0]

    async def read(
        self,
        stream: str,
        *,
        events: Sequence[type[Event]] = (),
        key: Sequence[str] = (),
        subjects: Sequence[str] = (),
        start_sequence: int = 1,
        follow: bool = True,
    ) -> AsyncGenerator[Stored, None]:
        filters = list(subjects) or read_filters(self.run, stream, events, key)
        last = await self.last_sequence(stream)
        held = self.broker.stream(self.run, stream)
        end = None if follow else last
        position = start_sequence - 1
        n_rewinds = len(held.rewinds)
        signal = Signal()
        held.readers[signal] = None
        self._signals[signal] = held
        try:
            while end is None or position < end:
                self._wire.check_open()
                if not self.is_connected:
                    await self._wire.until_connected(60.0)
                    continue
                lowest = min(held.rewinds[n_rewinds:], default=held.last_sequence)
                if min(lowest, held.last_sequence) < position:
                    raise StreamRewoundError(f"stream {stream} ended at {lowest}, but was read up to {position}")
                n_rewinds = len(held.rewinds)
                if position == held.last_sequence:
                    await signal.wait()
                    await self.linger("read", stream)
                    continue
                position += 1
                record = held.records.get(position)
                if record is not None and (not filters or any(matches(each, record.subject) for each in filters)):
                    yield self.decoded(stream, record)
        finally:
            held.readers.pop(signal, None)
            self._signals.pop(signal, None)

    def decoded(self, stream: str, record: Record) -> Stored:
        """A record as the port shows it."""
        stored = stored_of(stream, record.subject, record.sequence, record.data, record.at_ns, record.traceparent)
        if stored.malformed is not None:
            self._count("n_malformed")
        return stored

    async def consume(self, consumer: str, handler: Handler, *, concurrency: int) -> MemorySubscription:
        self._wire.check_open()
        queue = self.broker.queue(self.run, consumer)
        subscription = MemorySubscription(self, queue, handler, concurrency)
        self._subscriptions.append(subscription)
        return subscription

    async def get_last(self, event: type[Event], *key: str) -> Stored | None:
        stream = topology.fact_of(event).stream
        subject = topology.subject(self.run, event, *key)
        found = [each for each in await self.read_key(stream, *key) if each.subject == subject]
        return found[-1] if found else None

    async def read_key(self, stream: str, *key: str, after: int = 0) -> list[Stored]:
        held = self.broker.stream(self.run, stream)

        def later() -> list[Record]:
            sequences = held.by_key.get(".".join(key), ()) if key else sorted(held.records)
            return [held.records[each] for each in sequences if each > after]

        found = await self._wire.ask(stream, later)
        return [self.decoded(stream, record) for record in found]

    async def sequence_at(self, stream: str, at_ns: int) -> int:
        def first() -> int:
            held = self.broker.stream(self.run, stream)
            return next((record.sequence for record in held.records.values() if record.at_ns >= at_ns), held.last_sequence + 1)

        return await self._wire.ask(stream, first)

    async def last_sequence(self, stream: str) -> int:
        return (await self.stream_info(stream)).last_sequence

    async def stream_info(self, stream: str) -> StreamInfo:
        def info() -> StreamInfo:
            held = self.broker.stream(self.run, stream)
            n = len(held.records)
            return StreamInfo(stream, held.epoch, held.first_sequence, held.last_sequence, n, held.n_bytes, held.max_bytes)

        return await self._wire.ask(stream, info)

    async def consumer_info(self, consumer: str) -> ConsumerInfo:
        def info() -> ConsumerInfo:
            queue = self.broker.queue(self.run, consumer)
            again = sum(1 for held in queue.outstanding.values() if held.n_delivered > 1)
            return ConsumerInfo(consumer, len(queue.todo), len(queue.outstanding), again, queue.row.max_ack_pending)

        return await self._wire.ask(consumer, info)

    async def purge(
        self, stream: str, *, up_to_sequence: int | None = None, key: Sequence[str] = (), as_of: int | None = None
    ) -> int:
        filters = read_filters(self.run, stream, (), key)

        def delete() -> int:
            if as_of not in (None, self.n_reconnects):
                raise BusError(f"stream {stream} is not purged: the connection was lost since its sequences were read")
            held = self.broker.stream(self.run, stream)
            doomed = [
                record.sequence
                for record in held.records.values()
                if (up_to_sequence is None or record.sequence <= up_to_sequence)
                and (not filters or matches(filters[0], record.subject))
            ]
            for sequence in doomed:
                held.delete(sequence)
            return len(doomed)

        return await self._wire.ask(stream, delete)

    async def put_blob(self, episode: str, data: bytes) -> BlobRef:
        return await blobs.put_blob(self, episode, data)

    async def get_blob(self, ref: BlobRef) -> bytes:
        return await blobs.get_blob(self, ref)

    # --- core ---

    def core_subject(self, message: type[Message], key: str) -> str:
        return topology.core_subject(self.run, message, key)

    async def publish(
        self, message: Message, *, key: str | None = None, subject: str | None = None, traceparent: str | None = None
    ) -> None:
        self._wire.check_open()
        if self.traceparent_of is not None:
            traceparent = traceparent or self.traceparent_of(message)
        target = core_target(self.run, message, key, subject)
        data = encode(message)

        def offer() -> None:
            for listener in self.broker.listeners(target):
                listener.offer((target, "", data, traceparent))

        self._wire.send("core", target, offer)
        await self.platform.sleep(0.0)

    async def request(
        self,
        message: Message,
        *,
        key: str | None = None,
        subject: str | None = None,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> Message:
        if self.traceparent_of is not None:
            traceparent = traceparent or self.traceparent_of(message)
        target = core_target(self.run, message, key, subject)
        data = encode(message)
        deadline_s = self.platform.monotonic() + timeout_s
        while True:
            self._wire.check_open()
            left_s = deadline_s - self.platform.monotonic()
            if left_s <= 0:
                raise RequestTimeoutError(f"no answer on {target} within {timeout_s:g} s")
            try:
                answer = await self._wire.exchange_core(target, data, left_s, traceparent)
                break
            except (Unanswered, NoResponderError):
                # A broker restart loses no request: it is asked again when all are back.
                if not self._wire.is_settling:
                    raise
            await self.platform.sleep(REPEAT_S)
        try:
            return decode_message(answer)
        except MalformedError as error:
            self._count("n_malformed")
            raise BusError(f"the answer on {target} cannot be read: {error}") from error

    async def _reply(self, subject: str, data: bytes) -> None:
        def deliver() -> None:
            if (resolve := self.broker.replies.get(subject)) is not None:
                resolve(data)

        self._wire.send("core", subject, deliver)

    async def subscribe(self, message: type[Message], key: str, handler: CoreHandler) -> CoreSubscription:
        self._wire.check_open()
        subject = topology.core_subject(self.run, message, key)
        held = self.broker.core.setdefault(subject, [])

        async def close() -> None:
            held[:] = [each for each in held if each[1] is not subscription]

        subscription = CoreSubscription(subject, handler, self._reply, close=close, count=self._count)
        held.append((self._wire, subscription))
        self._subscriptions.append(subscription)
        return subscription

    # --- the run and the connection ---

    async def ensure_topology(self, max_bytes: Mapping[str, int] | None = None) -> None:
        await self.platform.sleep(0.0)
        self.broker.ensure(self.run, dict(max_bytes or {}))

    async def delete_topology(self) -> None:
        await self.platform.sleep(0.0)
        self.broker.forget(self.run)

    def _count(self, name: str) -> None:
        self._counters[name] += 1

    def gauges(self) -> dict[str, float]:
        return {**self._counters, "n_reconnects": float(self.n_reconnects)}

    async def drain(self, timeout_s: float = 10.0) -> None:
        for subscription in self._subscriptions:
            await subscription.drain(timeout_s)
        await self.close()

    async def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.cancel()
        self.cut()
        self._wire.fail_all()

    def cut(self) -> None:
        """Vanish from the broker without a word, as a process that is killed does; what was sent still arrives."""
        self._wire.cut()
        for subscription in self._subscriptions:
            if isinstance(subscription, MemorySubscription):
                subscription.leave()
        for held in self.broker.core.values():
            held[:] = [each for each in held if each[0] is not self._wire]
        for signal, stream in self._signals.items():
            stream.readers.pop(signal, None)


def _first_after(stream: MemoryStream, record: Record, expected: int, scope: Scope) -> Record | None:
    if scope is Scope.STREAM:
        return stream.records.get(expected + 1)
    sequences = stream.by_key.get(".".join(record.subject.split(".")[5:]), [])
    return next((stream.records[each] for each in sequences if each > expected), None)
