"""JetStream's request API over JSON, as far as the bus needs it: streams, consumers, direct reads, purges."""

import asyncio
import logging
from datetime import UTC, datetime

import msgspec

from actors.runtime.bus import DUPLICATE_WINDOW_S, ConsumerInfo, StreamInfo
from actors.runtime.wire import Packet, Wire
from asearch.errors import BusError, NoResponderError, RequestTimeoutError
from schemas.topology import MAX_PAYLOAD_BYTES, Consumer, Stream, any_key, broker_stream

log = logging.getLogger(__name__)

TRY_S = 5.0
TOTAL_S = 30.0
UNREADY_S = 0.1
NANO = 1_000_000_000
STREAM_EXISTS = 10058
CONSUMER_MISSING = 10014
STREAM_MISSING = 10059
NOT_FOUND = 404
END_OF_BATCH = 204
DIRECT_BATCH = 256


class ApiRefusal(BusError):
    """The broker refused an API request; `err_code` is its reason."""

    def __init__(self, message: str, err_code: int) -> None:
        super().__init__(message)
        self.err_code = err_code


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0


class _StreamConfig(msgspec.Struct):
    max_bytes: int = -1


class _Sequences(msgspec.Struct):
    consumer_seq: int = 0
    stream_seq: int = 0


class _ConsumerConfig(msgspec.Struct):
    max_ack_pending: int = 0


class _Answer(msgspec.Struct):
    error: _Error | None = None
    created: str = ""
    state: _State | None = None
    name: str = ""
    num_pending: int = 0
    num_ack_pending: int = 0
    num_redelivered: int = 0
    purged: int = 0
    delivered: _Sequences | None = None
    ack_floor: _Sequences | None = None
    config: msgspec.Raw = msgspec.Raw(b"{}")


_answers = msgspec.json.Decoder(_Answer)


def nanoseconds(rfc3339: str) -> int:
    """A timestamp of the broker in nanoseconds since the epoch; 0 if it cannot be read."""
    try:
        whole, _, fraction = rfc3339.rstrip("Z").partition(".")
        seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
        return seconds * NANO + int(fraction[:9].ljust(9, "0") or 0)
    except ValueError:
        return 0


def rfc3339(at_ns: int) -> str:
    """A time in nanoseconds since the epoch as the broker reads it."""
    whole = datetime.fromtimestamp(at_ns // NANO, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{at_ns % NANO:09d}Z"


class DirectMessage(msgspec.Struct, frozen=True, gc=False):
    """A stored message read without a consumer."""

    subject: str
    sequence: int
    at_ns: int
    data: bytes
    message_id: str | None
    traceparent: str | None


def _direct(packet: Packet) -> DirectMessage:
    return DirectMessage(
        packet.field(b"Nats-Subject") or "",
        int(packet.field(b"Nats-Sequence") or 0),
        nanoseconds(packet.field(b"Nats-Time-Stamp") or ""),
        packet.data,
        packet.field(b"Nats-Msg-Id"),
        packet.field(b"traceparent"),
    )


class JetStreamApi:
    """Requests to the broker's own subjects, retried while it starts or the connection is down."""

    def __init__(self, wire: Wire, run: str) -> None:
        self._wire = wire
        self._run = run

    def stream(self, stream: str) -> str:
        """The broker's name of a stream of this run."""
        return broker_stream(self._run, stream)

    async def ask(self, subject: str, payload: object, *, total_s: float = TOTAL_S, as_of: int | None = None) -> Packet:
        """An idempotent request, repeated until it is answered. Raises BusError after `total_s`.

        With `as_of` it is sent only while `n_reconnects` is that.
        """
        data = b"" if payload is None else msgspec.json.encode(payload)
        platform = self._wire.platform
        deadline = platform.monotonic() + total_s
        while True:
            left_s = deadline - platform.monotonic()
            if as_of not in (None, self._wire.n_reconnects):
                raise BusError(f"{subject} was not asked: the connection was lost since its sequences were read")
            try:
                if self._wire.connected.is_set():
                    return await self._wire.request(subject, data, min(TRY_S, max(left_s, 0.1)))
                trouble = "the broker is not connected"
            except (NoResponderError, RequestTimeoutError, BusError) as error:
                if self._wire.client.is_closed:
                    raise
                trouble = str(error)
            if left_s <= UNREADY_S:
                raise BusError(f"the broker did not answer {subject} within {total_s:g} s: {trouble}")
            await platform.sleep(UNREADY_S)

    async def call(self, subject: str, payload: object, *, total_s: float = TOTAL_S, as_of: int | None = None) -> _Answer:
        """An API request. Raises ApiRefusal with the broker's reason."""
        packet = await self.ask(f"$JS.API.{subject}", payload, total_s=total_s, as_of=as_of)
        try:
            answer = _answers.decode(packet.data)
        except msgspec.DecodeError as error:
            raise BusError(f"the broker's answer to {subject} cannot be read: {error}") from error
        if answer.error is not None:
            fault = answer.error
            raise ApiRefusal(f"the broker refused {subject}: {fault.description} ({fault.err_code})", fault.err_code)
        return answer

    async def ensure_stream(self, row: Stream, max_bytes: int) -> None:
        """Create a stream of the run, or update it to the table."""
        name = self.stream(row.name)
        config: dict[str, object] = {
            "name": name,
            "description": row.holds,
            "subjects": [f"asearch.{self._run}.{row.name}.>"],
            "retention": "limits",
            "discard": "new",
            "storage": "file",
            "max_bytes": max_bytes,
            "max_msgs": -1,
            "max_age": 0,
            "max_msg_size": MAX_PAYLOAD_BYTES,
            "num_replicas": 1,
            "duplicate_window": int(DUPLICATE_WINDOW_S * NANO),
            "allow_direct": True,
        }
        if row.async_writes:
            config["persist_mode"] = "async"
        try:
            await self.call(f"STREAM.CREATE.{name}", config)
        except ApiRefusal as refusal:
            if refusal.err_code != STREAM_EXISTS:
                raise
            await self.call(f"STREAM.UPDATE.{name}", config)

    async def delete_stream(self, row: Stream) -> None:
        """Delete a stream of the run with all it holds; one that does not exist is fine."""
        try:
            await self.call(f"STREAM.DELETE.{self.stream(row.name)}", None)
        except ApiRefusal as refusal:
            if refusal.err_code != STREAM_MISSING:
                raise

    async def ensure_consumer(self, row: Consumer) -> None:
        """Create a durable queue of the run, or update it to the table."""
        stream = self.stream(row.stream)
        config = {
            "name": row.name,
            "durable_name": row.name,
            "ack_policy": "explicit",
            "ack_wait": int(row.ack_wait_s * NANO),
            "max_ack_pending": row.max_ack_pending,
            "max_deliver": -1,
            "max_waiting": 512,
            "deliver_policy": "all",
            "replay_policy": "instant",
            "filter_subjects": [any_key(self._run, event) for event in row.events],
        }
        answer = await self.call(f"CONSUMER.CREATE.{stream}.{row.name}", {"stream_name": stream, "config": config, "action": ""})
        await self._bring_back(row, answer)

    async def _bring_back(self, row: Consumer, state: _Answer) -> None:
        """Set a queue that stands behind the end of its stream to where the stream ends.

        The server does so itself after a power cut took the stream's tail, but not if it took all of it before anything was
        acknowledged in order: the queue would then never deliver the facts that are given the lost ones' sequences.
        """
        delivered = (state.delivered or _Sequences()).stream_seq
        last = (await self.stream_info(row.stream)).last_sequence
        if delivered > last:
            begin = min((state.ack_floor or _Sequences()).stream_seq, last) + 1
            log.warning("queue %s stood at %d, but %s ends at %d: set to %d", row.name, delivered, row.stream, last, begin)
            await self.call(f"CONSUMER.RESET.{self.stream(row.stream)}.{row.name}", {"seq": begin})

    async def create_reader(self, stream: str, name: str, start_sequence: int, filters: list[str]) -> int:
        """Make an ephemeral consumer without acknowledgements. Returns how many messages it has before it."""
        config: dict[str, object] = {
            "name": name,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, start_sequence),
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 60 * NANO,
            "max_deliver": 1,
        }
        if filters:
            config["filter_subjects"] = filters
        target = self.stream(stream)
        payload = {"stream_name": target, "config": config, "action": ""}
        return (await self.call(f"CONSUMER.CREATE.{target}.{name}", payload)).num_pending

    async def sequence_at(self, stream: str, at_ns: int) -> int:
        """Where a consumer begins that is to deliver what was stored at that time or later."""
        name, target = f"seek-{self._wire.platform.new_id()[:16]}", self.stream(stream)
        config: dict[str, object] = {
            "name": name,
            "ack_policy": "none",
            "deliver_policy": "by_start_time",
            "opt_start_time": rfc3339(max(0, at_ns)),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 60 * NANO,
        }
        payload = {"stream_name": target, "config": config, "action": ""}
        answer = await self.call(f"CONSUMER.CREATE.{target}.{name}", payload)
        await self.delete_consumer(stream, name)
        return (answer.delivered or _Sequences()).stream_seq + 1

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer; one that is gone is fine."""
        try:
            await self.call(f"CONSUMER.DELETE.{self.stream(stream)}.{name}", None, total_s=1.0)
        except BusError as error:
            log.debug("consumer %s was not deleted: %s", name, error)

    async def stream_info(self, stream: str) -> StreamInfo:
        """The state of a stream. Raises BusError if there is none."""
        try:
            answer = await self.call(f"STREAM.INFO.{self.stream(stream)}", None)
        except ApiRefusal as refusal:
            if refusal.err_code == STREAM_MISSING:
                message = f"run {self._run!r} has no stream {stream!r} on this broker"
                raise ApiRefusal(message, STREAM_MISSING) from refusal
            raise
        state = answer.state or _State()
        bound = msgspec.json.decode(answer.config, type=_StreamConfig).max_bytes
        return StreamInfo(stream, answer.created, state.first_seq, state.last_seq, state.messages, state.bytes, bound)

    async def consumer_info(self, row: Consumer) -> ConsumerInfo:
        """The state of a durable queue."""
        answer = await self.call(f"CONSUMER.INFO.{self.stream(row.stream)}.{row.name}", None)
        bound = msgspec.json.decode(answer.config, type=_ConsumerConfig).max_ack_pending
        return ConsumerInfo(row.name, answer.num_pending, answer.num_ack_pending, answer.num_redelivered, bound)

    async def reader_progress(self, stream: str, name: str) -> tuple[int, int]:
        """How many messages a consumer has before it, and how many it has delivered."""
        answer = await self.call(f"CONSUMER.INFO.{self.stream(stream)}.{name}", None)
        return answer.num_pending, (answer.delivered or _Sequences()).consumer_seq

    async def purge(self, stream: str, payload: dict[str, object], as_of: int | None) -> int:
        """Delete messages by `filter` and `seq`; returns how many. Raises BusError if `n_reconnects` is not `as_of` any more."""
        return (await self.call(f"STREAM.PURGE.{self.stream(stream)}", payload, as_of=as_of)).purged

    async def last_on(self, stream: str, subject: str) -> DirectMessage | None:
        """The newest message on one subject."""
        packet = await self.ask(f"$JS.API.DIRECT.GET.{self.stream(stream)}.{subject}", None)
        return None if packet.status == NOT_FOUND else _direct(packet)

    async def first_after(self, stream: str, sequence: int, subject_filter: str) -> DirectMessage | None:
        """The first message on the filter with a sequence above `sequence`."""
        payload = {"seq": sequence + 1, "next_by_subj": subject_filter}
        packet = await self.ask(f"$JS.API.DIRECT.GET.{self.stream(stream)}", payload)
        return None if packet.status == NOT_FOUND else _direct(packet)

    async def at(self, stream: str, sequence: int) -> DirectMessage | None:
        """The message with this sequence."""
        packet = await self.ask(f"$JS.API.DIRECT.GET.{self.stream(stream)}", {"seq": sequence})
        return None if packet.status == NOT_FOUND else _direct(packet)

    async def all_on(self, stream: str, subject_filter: str, after: int = 0) -> list[DirectMessage]:
        """Every message on the filter with a sequence above `after`, in order."""
        found: list[DirectMessage] = []
        while True:
            after = found[-1].sequence if found else after
            batch, complete = await self._batch(stream, after + 1, subject_filter)
            found.extend(batch)
            if complete:
                return found

    async def _batch(self, stream: str, first: int, subject_filter: str) -> tuple[list[DirectMessage], bool]:
        """Up to DIRECT_BATCH messages from `first` on, and whether these were all. A cut batch counts as it is."""
        payload = {"seq": first, "batch": DIRECT_BATCH, "next_by_subj": subject_filter}
        subject = f"$JS.API.DIRECT.GET.{self.stream(stream)}"
        packets: asyncio.Queue[Packet] = asyncio.Queue()
        inbox = f"{self._wire.prefix}d.{self._wire.platform.new_id()[:12]}"
        inlet = await self._wire.listen(inbox, packets.put_nowait)
        batch: list[DirectMessage] = []
        try:
            await self._wire.send(subject, msgspec.json.encode(payload), inbox)
            async with asyncio.timeout(TRY_S):
                while True:
                    packet = await packets.get()
                    if packet.status == NOT_FOUND:
                        return batch, True
                    if packet.status == END_OF_BATCH:
                        return batch, int(packet.field(b"Nats-Num-Pending") or 0) == 0
                    if packet.status:
                        await self._wire.platform.sleep(UNREADY_S)
                        return batch, False
                    if not batch or packet.field(b"Nats-Sequence") != "0":
                        batch.append(_direct(packet))
        except TimeoutError:
            return batch, False
        finally:
            await inlet.close()
