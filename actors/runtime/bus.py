"""The bus port: what actors say to each other through, whichever adapter carries it.

Facts are appended to streams and read back in order; requests among them are worked off through durable queues; commands
travel on core subjects and are lost when nobody listens. Delivery is at least once. Recorded effects are exactly once by
event id and conditional append.
"""

import enum
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from actors.runtime.platform import Platform
from schemas.commands import Message
from schemas.events import Event
from schemas.records import BlobRef

APPEND_TIMEOUT_S = 30.0
"""How long an append is retried under its id. Shorter than the broker's memory of ids (`DUPLICATE_WINDOW_S`)."""

DUPLICATE_WINDOW_S = 120.0


class Scope(enum.Enum):
    """Whose last sequence a conditional append compares with `expected`."""

    KEY = "key"
    """The facts of the stream under the event's key, of every type."""
    STREAM = "stream"
    """The whole stream: for a stream with a single writer."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message of a stream. `event` is None if and only if `malformed` says why the bytes are no event."""

    stream: str
    subject: str
    sequence: int
    data: bytes
    event: Event | None
    malformed: str | None = None
    at_ns: int = 0
    """The broker's clock when it was stored, nanoseconds since the epoch."""
    traceparent: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """The key's tokens of the subject."""
        return tuple(self.subject.split(".")[5:])


class StreamInfo(msgspec.Struct, frozen=True):
    """The state of a stream. An empty one has `last_sequence` = the sequence before its next message."""

    name: str
    epoch: str
    """Changes when the stream is deleted and made anew: sequences of different epochs are not comparable."""
    first_sequence: int
    last_sequence: int
    n_messages: int
    n_bytes: int
    max_bytes: int


class ConsumerInfo(msgspec.Struct, frozen=True):
    """The state of a durable queue: not yet delivered, delivered and not acknowledged, of these delivered again."""

    name: str
    n_pending: int
    n_ack_pending: int
    n_redelivered: int
    max_ack_pending: int


class Delivery(Protocol):
    """One delivery of a queued fact. The same fact may be delivered to two handlers at once."""

    stored: Stored
    n_delivered: int
    """1 at the first delivery."""

    async def ack(self) -> None:
        """The work is done: never deliver again. Not confirmed; a lost ack means one more delivery."""
        ...

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver again after the delay."""
        ...

    async def in_progress(self) -> None:
        """Start the acknowledgement wait over."""
        ...

    async def term(self) -> None:
        """Never deliver again, though the work was not done."""
        ...


class Incoming(Protocol):
    """A core message that arrived."""

    subject: str
    message: Message
    traceparent: str | None

    @property
    def wants_reply(self) -> bool:
        """Whether the sender waits for `reply`."""
        ...

    async def reply(self, message: Message) -> None:
        """Answer the sender; does nothing when no reply is awaited."""
        ...


class Subscription(Protocol):
    """Something that calls handlers in the background until it is stopped."""

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for running handlers, cancel those that are still running after the timeout."""
        ...

    async def wait(self) -> None:
        """Return when stopped. Raises what ended it, if that was not `drain` or the bus closing."""
        ...


Handler = Callable[[Delivery], Awaitable[None]]
CoreHandler = Callable[[Incoming], Awaitable[None]]


class Bus(Protocol):
    """One actor's connection. All methods raise BusError or a subclass, with the stream or subject in the message."""

    run: str
    actor: str
    platform: Platform
    traceparent_of: Callable[[Event | Message], str | None] | None
    """Names the header of what is appended, published or requested without a `traceparent`; None: such has none."""

    @property
    def n_reconnects(self) -> int:
        """How often the connection was lost and made again. When it grew, a stream that is not synced may have lost its tail."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the connection to the broker stands now."""
        ...

    async def append(
        self,
        event: Event,
        *key: str,
        expected: int | None = None,
        scope: Scope = Scope.KEY,
        timeout_s: float = APPEND_TIMEOUT_S,
        traceparent: str | None = None,
    ) -> int:
        """Store an event under its key and return its sequence. It is stored when this returns.

        `expected` is the last sequence in `scope` that the writer has seen (0: none). An append that may or may not have
        arrived is retried under the same id. A conditional append succeeds twice only with identical bytes; a repeat of
        an unconditional one within DUPLICATE_WINDOW_S returns the first sequence.

        Raises ConflictError (somebody else wrote first), StreamFullError, BusError (refused, or not known to be stored
        after `timeout_s`).
        """
        ...

    async def append_bytes(self, subject: str, data: bytes, message_id: str) -> int:
        """Store bytes as they are on a subject of a stream, unconditionally: for what was refused and is offered again."""
        ...

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
        """The messages of a stream in order, without gaps or repeats, across reconnects and broker restarts.

        `events` empty means every type; `key` empty means every key. `subjects` are filters of whole subjects with `*` and a
        final `>`, no two of which match the same subject; they stand instead of `events` and `key`. Without `follow` it ends
        after the last message that was stored when reading began. Purged messages are skipped. Raises StreamRewoundError if
        the broker has lost messages that were already handed out: fold again from the start. Close it (`aclosing`) if you
        stop early.
        """
        ...

    async def consume(self, consumer: str, handler: Handler, *, concurrency: int) -> Subscription:
        """Work on a durable queue of the topology, at most `concurrency` handlers at once.

        The handler acknowledges. If it raises, the error is logged and the fact is delivered again after a while.
        Messages are taken only when a handler is free, so several processes share fairly.
        """
        ...

    async def get_last(self, event: type[Event], *key: str) -> Stored | None:
        """The newest fact of one type under one key."""
        ...

    async def read_key(self, stream: str, *key: str, after: int = 0) -> list[Stored]:
        """All messages of a stream under one key (none: of the whole stream) with a sequence above `after`, in order."""
        ...

    async def sequence_at(self, stream: str, at_ns: int) -> int:
        """The sequence of the first message that was stored at that time or later; the next one's if there is none yet."""
        ...

    async def last_sequence(self, stream: str) -> int:
        """The last sequence of a stream, 0 if nothing was ever stored."""
        ...

    async def stream_info(self, stream: str) -> StreamInfo:
        """The state of a stream."""
        ...

    async def consumer_info(self, consumer: str) -> ConsumerInfo:
        """The state of a durable queue."""
        ...

    async def purge(
        self, stream: str, *, up_to_sequence: int | None = None, key: Sequence[str] = (), as_of: int | None = None
    ) -> int:
        """Delete messages: under `key` (a prefix is enough), up to and including `up_to_sequence`. Returns how many.

        `as_of` is the `n_reconnects` under which the sequence was read. Raises BusError if the connection was lost since: a
        broker that lost a tail gives its sequences out again.
        """
        ...

    async def put_blob(self, episode: str, data: bytes) -> BlobRef:
        """Store a payload in chunks; it is stored when this returns. Storing the same bytes again changes nothing."""
        ...

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read a payload and verify its hash. Raises BlobMissingError if a chunk is gone or the bytes differ."""
        ...

    def core_subject(self, message: type[Message], key: str) -> str:
        """The core subject of a message type with this key: what `reply_to` fields hold."""
        ...

    async def publish(
        self, message: Message, *, key: str | None = None, subject: str | None = None, traceparent: str | None = None
    ) -> None:
        """Send a core message to a key of its type, or to a subject; lost if nobody listens. Exactly one of the two."""
        ...

    async def request(
        self,
        message: Message,
        *,
        key: str | None = None,
        subject: str | None = None,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> Message:
        """Send a core message and wait for the answer.

        Raises NoResponderError at once if nobody listens, RequestTimeoutError if nobody answers in time.
        """
        ...

    async def subscribe(self, message: type[Message], key: str, handler: CoreHandler) -> Subscription:
        """Call the handler for every core message of this type and key (`>`: every key), one after the other, in order.

        A bounded number wait; what arrives beyond is lost, logged, and counted in the gauge `n_slow_consumer`.
        """
        ...

    async def ensure_topology(self, max_bytes: Mapping[str, int] | None = None) -> None:
        """Create or update the run's streams and durable consumers from the topology table.

        `max_bytes` replaces the table's bound of the streams it names.
        """
        ...

    async def delete_topology(self) -> None:
        """Delete the run's streams and queues with all they hold; none has to exist."""
        ...

    def gauges(self) -> dict[str, float]:
        """Counters since the start: reconnects, retries, slow consumers, malformed messages, lost pulls."""
        ...

    async def drain(self, timeout_s: float = 10.0) -> None:
        """Drain every subscription, flush what was sent, then close."""
        ...

    async def close(self) -> None:
        """Stop at once."""
        ...
