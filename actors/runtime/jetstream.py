"""The bus over NATS JetStream."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence

from actors.runtime import blobs
from actors.runtime.broker import VIEWER
from actors.runtime.bus import APPEND_TIMEOUT_S, Bus, ConsumerInfo, CoreHandler, Handler, Scope, Stored, StreamInfo
from actors.runtime.core import CoreSubscription
from actors.runtime.decoding import stored_of
from actors.runtime.durable import DurableQueue
from actors.runtime.jsapi import DirectMessage, JetStreamApi
from actors.runtime.platform import Platform
from actors.runtime.publisher import Publisher
from actors.runtime.pull import Watchdog
from actors.runtime.reader import BATCH, Reader
from actors.runtime.routes import Route, core_target, read_filters, route
from actors.runtime.waking import report_failure
from actors.runtime.wire import DisconnectedError, Packet, Wire, header_block
from asearch.errors import BusError, ConflictError, NoResponderError, RequestTimeoutError
from schemas import topology
from schemas.codec import MalformedError, decode_message, encode
from schemas.commands import Message
from schemas.events import Event
from schemas.permissions import inbox
from schemas.records import BlobRef

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
REPEAT_S = 0.1
BLOB_BATCH = 16
"""Readers of chunks hold at most this many of up to 1 MiB each."""


async def connect(
    url: str, run: str, actor: str, platform: Platform, *, timeout_s: float = CONNECT_TIMEOUT_S, only_looks: bool = False
) -> "JetStreamBus":
    """Connect an actor to a run on the broker at `url`; one that `only_looks` is refused all but reading by the broker.

    Raises BusError if the broker cannot be reached in time.
    """
    if not topology.is_key(run):
        raise BusError(f"{run!r} cannot name a run: use letters, digits, '-' and '_'")
    wire = Wire(url.replace("://", f"://{VIEWER}:{VIEWER}@", 1) if only_looks else url, f"{run}/{actor}", platform)
    if only_looks:
        wire.prefix = f"{inbox(VIEWER)}.{platform.new_id()[:22]}"
    bus = JetStreamBus(wire, run, actor)
    await bus.open(timeout_s)
    return bus


class JetStreamBus(Bus):
    """One actor's connection to a run."""

    def __init__(self, wire: Wire, run: str, actor: str) -> None:
        self.run = run
        self.actor = actor
        self.platform = wire.platform
        self.traceparent_of = None
        self._wire = wire
        self._api = JetStreamApi(wire, run)
        self._publisher = Publisher(wire)
        self._watchdog = Watchdog(wire)
        self._subscriptions: list[DurableQueue | CoreSubscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._counters: dict[str, float] = {"n_malformed": 0.0, "n_slow_consumer": 0.0}

    @property
    def n_reconnects(self) -> int:
        return self._wire.n_reconnects

    @property
    def is_connected(self) -> bool:
        return self._wire.connected.is_set()

    async def open(self, timeout_s: float) -> None:
        """Connect. Raises BusError."""
        await self._wire.open(timeout_s)
        await self._publisher.open()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._publisher.sweep(), name="sweep-appends"),
            loop.create_task(self._watchdog.run(), name="watch-pulls"),
        ]
        for task in self._tasks:
            task.add_done_callback(report_failure)

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
        header = _header(event.id, target, expected, scope, traceparent)
        data = encode(event)
        await self.platform.fault("bus.append")
        try:
            ack, _ = await self._publisher.publish(target.subject, data, header, timeout_s)
        except ConflictError:
            if expected is None:
                raise
            sequence = await self._own_append(target, event.id, data, expected, scope)
            if sequence is None:
                raise
            return sequence
        if ack.duplicate and expected is not None:
            raise ConflictError(f"the id {event.id!r} is already used in stream {target.stream}, at {ack.seq}")
        await self.platform.fault("bus.appended")
        return ack.seq

    async def append_bytes(self, subject: str, data: bytes, message_id: str) -> int:
        ack, _ = await self._publisher.publish(subject, data, header_block(Nats_Msg_Id=message_id), APPEND_TIMEOUT_S)
        return ack.seq

    async def _own_append(self, target: Route, event_id: str, data: bytes, expected: int, scope: Scope) -> int | None:
        """The sequence of exactly this message if it follows `expected`: an earlier try has succeeded unnoticed."""
        if scope is Scope.STREAM:
            there = await self._api.at(target.stream, expected + 1)
        else:
            there = await self._api.first_after(target.stream, expected, target.scope)
        if there is not None and there.message_id == event_id and there.data == data:
            return there.sequence
        return None

    def read(
        self,
        stream: str,
        *,
        events: Sequence[type[Event]] = (),
        key: Sequence[str] = (),
        subjects: Sequence[str] = (),
        start_sequence: int = 1,
        follow: bool = True,
    ) -> AsyncGenerator[Stored, None]:
        reader = Reader(
            self._wire,
            self._api,
            self._watchdog,
            stream,
            filters=list(subjects) or read_filters(self.run, stream, events, key),
            start_sequence=start_sequence,
            batch=BLOB_BATCH if stream == "blobs" else BATCH,
            on_malformed=self._on_malformed,
        )
        return reader.messages(follow=follow)

    async def consume(self, consumer: str, handler: Handler, *, concurrency: int) -> DurableQueue:
        row = topology.consumer_named(consumer)
        queue = DurableQueue(
            self._wire,
            self._watchdog,
            self.run,
            row,
            handler,
            concurrency=concurrency,
            on_malformed=self._on_malformed,
        )
        self._subscriptions.append(queue)
        return queue

    async def get_last(self, event: type[Event], *key: str) -> Stored | None:
        stream = topology.fact_of(event).stream
        found = await self._api.last_on(stream, topology.subject(self.run, event, *key))
        return None if found is None else self._stored(stream, found)

    async def read_key(self, stream: str, *key: str, after: int = 0) -> list[Stored]:
        filter_ = topology.any_fact(self.run, stream, *key) if key else topology.any_message(self.run, stream)
        found = await self._api.all_on(stream, filter_, after)
        return [self._stored(stream, message) for message in found]

    def _stored(self, stream: str, message: DirectMessage) -> Stored:
        stored = stored_of(stream, message.subject, message.sequence, message.data, message.at_ns, message.traceparent)
        if stored.malformed is not None:
            self._on_malformed()
        return stored

    async def sequence_at(self, stream: str, at_ns: int) -> int:
        return await self._api.sequence_at(stream, at_ns)

    async def last_sequence(self, stream: str) -> int:
        return (await self._api.stream_info(stream)).last_sequence

    async def stream_info(self, stream: str) -> StreamInfo:
        return await self._api.stream_info(stream)

    async def consumer_info(self, consumer: str) -> ConsumerInfo:
        return await self._api.consumer_info(topology.consumer_named(consumer))

    async def purge(
        self, stream: str, *, up_to_sequence: int | None = None, key: Sequence[str] = (), as_of: int | None = None
    ) -> int:
        payload: dict[str, object] = {}
        if key:
            payload["filter"] = read_filters(self.run, stream, (), key)[0]
        if up_to_sequence is not None:
            payload["seq"] = up_to_sequence + 1
        return await self._api.purge(stream, payload, as_of)

    async def put_blob(self, episode: str, data: bytes) -> BlobRef:
        return await blobs.put_blob(self, episode, data)

    async def get_blob(self, ref: BlobRef) -> bytes:
        return await blobs.get_blob(self, ref)

    def core_subject(self, message: type[Message], key: str) -> str:
        return topology.core_subject(self.run, message, key)

    async def publish(
        self, message: Message, *, key: str | None = None, subject: str | None = None, traceparent: str | None = None
    ) -> None:
        if self.traceparent_of is not None:
            traceparent = traceparent or self.traceparent_of(message)
        header = header_block(traceparent=traceparent)
        await self._wire.send(core_target(self.run, message, key, subject), encode(message), "", header)

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
        header = header_block(traceparent=traceparent)
        target = core_target(self.run, message, key, subject)
        packet = await self._ask(target, encode(message), timeout_s, header)
        try:
            return decode_message(packet.data)
        except MalformedError as error:
            self._on_malformed()
            raise BusError(f"the answer on {target} cannot be read: {error}") from error

    async def _ask(self, target: str, data: bytes, timeout_s: float, header: bytes | None) -> Packet:
        """A core request that a broker restart does not lose: asked again when the connection is back, also of a late comer."""
        deadline_s = self.platform.monotonic() + timeout_s
        while True:
            left_s = deadline_s - self.platform.monotonic()
            try:
                return await self._wire.request(target, data, max(0.0, left_s), header)
            except (DisconnectedError, NoResponderError) as error:
                if not self._wire.is_settling or self._wire.client.is_closed:
                    raise
                if left_s <= REPEAT_S:
                    raise RequestTimeoutError(f"no answer on {target} within {timeout_s:g} s: {error}") from error
            await self.platform.sleep(REPEAT_S)

    async def subscribe(self, message: type[Message], key: str, handler: CoreHandler) -> CoreSubscription:
        subject = topology.core_subject(self.run, message, key)

        def on_packet(packet: Packet) -> None:
            traced = packet.header is not None and b"traceparent" in packet.header
            subscription.offer((packet.subject, packet.reply, packet.data, packet.field(b"traceparent") if traced else None))

        inlet = await self._wire.listen(subject, on_packet)
        subscription = CoreSubscription(subject, handler, self._wire.send, close=inlet.close, count=self._count)
        self._subscriptions.append(subscription)
        return subscription

    async def ensure_topology(self, max_bytes: Mapping[str, int] | None = None) -> None:
        bounds = max_bytes or {}
        for stream in topology.TOPOLOGY.streams:
            await self._api.ensure_stream(stream, bounds.get(stream.name, stream.max_bytes))
        for consumer in topology.TOPOLOGY.consumers:
            await self._api.ensure_consumer(consumer)

    async def delete_topology(self) -> None:
        for stream in topology.TOPOLOGY.streams:
            await self._api.delete_stream(stream)

    def _count(self, name: str) -> None:
        self._counters[name] += 1

    def _on_malformed(self) -> None:
        self._count("n_malformed")

    def gauges(self) -> dict[str, float]:
        return {
            **self._counters,
            **self._wire.counters,
            "n_append_retries": float(self._publisher.n_retries),
            "n_appends_in_flight": float(self._publisher.n_in_flight),
            "n_pulls_replaced": float(self._watchdog.n_replaced),
        }

    async def drain(self, timeout_s: float = 10.0) -> None:
        try:
            async with asyncio.timeout(timeout_s + 1.0):
                await asyncio.gather(*(each.drain(timeout_s) for each in self._subscriptions))
                await self._publisher.wait_empty()
                await self._wire.flush(timeout_s)
        except (TimeoutError, BusError) as error:
            log.warning("%s: not everything was drained: %s", self.actor, error or "timeout")
        await self.close()

    async def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.cancel()
        for task in self._tasks:
            task.cancel()
        self._publisher.close()
        await self._wire.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _header(event_id: str, target: Route, expected: int | None, scope: Scope, traceparent: str | None) -> bytes | None:
    if expected is None:
        return header_block(Nats_Msg_Id=event_id, traceparent=traceparent)
    if scope is Scope.STREAM:
        return header_block(Nats_Msg_Id=event_id, Nats_Expected_Last_Sequence=str(expected), traceparent=traceparent)
    return header_block(
        Nats_Msg_Id=event_id,
        Nats_Expected_Last_Subject_Sequence=str(expected),
        Nats_Expected_Last_Subject_Sequence_Subject=target.scope,
        traceparent=traceparent,
    )
