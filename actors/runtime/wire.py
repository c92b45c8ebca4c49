"""One NATS connection, reduced to what the bus needs: send, direct callbacks by subscription, requests by token.

Acknowledgements, pulled messages and replies come by the thousand a second, so they skip the client's queue and task per
subscription: their callbacks run in the read loop and must neither block nor await.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable

import msgspec
from nats.aio.client import Client
from nats.errors import ConnectionClosedError, MaxPayloadError, NoServersError, OutboundBufferLimitError
from nats.errors import Error as NatsError

from actors.runtime.platform import Platform
from asearch.errors import BusError, NoResponderError, RequestTimeoutError

log = logging.getLogger(__name__)

RECONNECT_WAIT_S = 0.1
PING_INTERVAL_S = 10
MAX_UNSENT_BYTES = 16 << 20
NO_RESPONDERS = 503
_USER = re.compile(r"(?<=://)[^/\s]*@|^[^/\s]*@")
SETTLE_S = 3.0
"""How long after a reconnect silence on a subject may mean that its listener is not connected again yet."""


class Packet(msgspec.Struct, gc=False):
    """A message as it came: `header` holds the raw header lines, None where there are none."""

    subject: str
    reply: str
    data: bytes
    header: bytes | None

    @property
    def status(self) -> int:
        """The status in the header's first line, 0 without one."""
        if self.header is None:
            return 0
        line = self.header[8:12].strip()
        return int(line) if line.isdigit() else 0

    def field(self, name: bytes) -> str | None:
        """The value of a header field, in the spelling of the broker."""
        if self.header is None:
            return None
        start = self.header.find(b"\r\n" + name + b": ")
        if start < 0:
            return None
        start += len(name) + 4
        return self.header[start : self.header.index(b"\r\n", start)].decode("utf-8", "replace")


def header_block(**fields: str | None) -> bytes | None:
    """The bytes of a header; `_` in a name stands for `-`, None fields are left out. Raises BusError for line breaks."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value is not None]
    if not lines:
        return None
    block = "\r\n".join(("NATS/1.0", *lines, "", "")).encode()
    if block.count(b"\n") != len(lines) + 2:
        raise BusError(f"a header value has a line break: {lines}")
    return block


def without_user(url: str) -> str:
    """A broker's url as it may be logged: without the user and the password that it may name."""
    return _USER.sub("", url)


PacketHandler = Callable[[Packet], None]


class _Client(Client):
    """The NATS client with a way past its per-subscription queues."""

    def __init__(self) -> None:
        super().__init__()
        self.direct: dict[int, PacketHandler] = {}

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        handler = self.direct.get(sid)
        if handler is None:
            return
        try:
            handler(Packet(subject.decode(), reply.decode(), data, headers or None))
        except Exception:
            # An error that left here would end the client's read loop without a word.
            log.exception("a message on %s could not be handled", subject)

    async def send(self, subject: str, data: bytes, reply: str, header: bytes | None) -> None:
        """What `publish` does, with a header block that is made already: the client's own costs more than the rest."""
        if self.is_closed:
            raise ConnectionClosedError
        if not self.is_connected and len(data) + self._pending_data_size > self._max_pending_size:
            raise OutboundBufferLimitError
        if len(data) + len(header or b"") > self._max_payload:
            # The broker would close the connection.
            raise MaxPayloadError
        if header is None:
            head = f"PUB {subject} {reply} {len(data)}\r\n".encode()
        else:
            head = f"HPUB {subject} {reply} {len(header)} {len(header) + len(data)}\r\n".encode() + header
        await self._send_command(head + data + b"\r\n")
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def drop_unsent(self) -> None:
        """Forget what was not written to the connection that is lost: a new broker must not take it for said to itself."""
        self._pending = []
        self._pending_data_size = 0


class DisconnectedError(BusError):
    """The connection was lost while an answer was awaited: ask again."""


class Inlet:
    """A subscription whose callback runs in the read loop."""

    def __init__(self, client: _Client, sid: int, subject: str) -> None:
        self._client = client
        self._sid = sid
        self.subject = subject

    async def close(self, linger_s: float = 0.0) -> None:
        """Stop listening. With `linger_s`, what the broker had sent before it heard of this still reaches the callback."""
        subscription = self._client._subs.get(self._sid)  # pyright: ignore[reportPrivateUsage]
        try:
            if subscription is not None and not self._client.is_closed:
                await subscription.unsubscribe()
                if linger_s > 0 and self._client.is_connected:
                    async with asyncio.timeout(linger_s):
                        await self._client.flush()
        except (NatsError, OSError, TimeoutError) as error:
            log.debug("unsubscribing from %s: %s", self.subject, error)
        finally:
            self._client.direct.pop(self._sid, None)


class Wire:
    """The connection. It reconnects for ever; `on_reconnect` callbacks run after each time."""

    def __init__(self, url: str, name: str, platform: Platform) -> None:
        self.url = url
        self.name = name
        self.platform = platform
        self.client = _Client()
        self.prefix = f"_INBOX.{platform.new_id()[:22]}"
        self.on_reconnect: list[Callable[[], None]] = []
        self.connected = asyncio.Event()
        self.counters: dict[str, float] = {"n_disconnects": 0.0, "n_broker_errors": 0.0}
        self.n_reconnects = 0
        self._connected_s = 0.0
        self._waiting: dict[str, asyncio.Future[Packet]] = {}
        self._n_tokens = 0
        self._closing = False

    async def open(self, timeout_s: float) -> None:
        """Connect. Raises BusError if the broker cannot be reached within the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connect()
                await self.listen(f"{self.prefix}.*", self._on_reply)
        except (TimeoutError, OSError, NatsError) as error:
            await self.close()
            reason = f"{type(error).__name__} {error}".strip()
            raise BusError(
                f"no NATS server at {without_user(self.url)} within {timeout_s:g} s ({reason}): is the broker up?"
            ) from error

    async def _connect(self) -> None:
        while True:
            try:
                await self.client.connect(
                    self.url,
                    name=self.name,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnect,
                    reconnected_cb=self._on_reconnect,
                    closed_cb=self._on_closed,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # pyright: ignore[reportArgumentType]
                    ping_interval=PING_INTERVAL_S,
                    connect_timeout=5,
                    allow_reconnect=True,
                    skip_subject_validation=True,
                )
            except (OSError, NoServersError):
                await self.platform.sleep(RECONNECT_WAIT_S)
            else:
                self.connected.set()
                return

    async def _on_error(self, error: Exception) -> None:
        self.counters["n_broker_errors"] += 1
        if not self._closing and not isinstance(error, ConnectionRefusedError):
            log.warning("broker connection of %s: %s %s", self.name, type(error).__name__, without_user(str(error)))

    async def _on_disconnect(self) -> None:
        self.connected.clear()
        self.client.drop_unsent()
        # Nobody will answer what was asked over the old connection.
        self._fail_waiting(DisconnectedError(f"{self.name} lost the broker while it waited for an answer"))
        if not self._closing:
            self.counters["n_disconnects"] += 1
            log.warning("%s lost the broker at %s; reconnecting", self.name, without_user(self.url))

    async def _on_reconnect(self) -> None:
        self.n_reconnects += 1
        self._connected_s = self.platform.monotonic()
        self.connected.set()
        log.info("%s is connected to the broker again", self.name)
        for callback in list(self.on_reconnect):
            callback()

    async def _on_closed(self) -> None:
        self.connected.clear()
        self._fail_waiting(BusError(f"the broker connection of {self.name} was closed"))

    def _fail_waiting(self, error: BusError) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Close without flushing."""
        self._closing = True
        # uvloop calls writing to a connection that has broken a RuntimeError.
        with contextlib.suppress(NatsError, OSError, RuntimeError):
            await self.client.close()

    async def listen(self, subject: str, handler: PacketHandler) -> Inlet:
        """Call the handler for every message on the subject, from the read loop. Raises BusError if closed."""
        try:
            # The client starts a task for its own callback; messages of this subscription never reach it.
            subscription = await self.client.subscribe(subject, cb=_never)
        except (NatsError, OSError) as error:
            raise BusError(f"cannot listen on {subject}: {type(error).__name__} {error}".strip()) from error
        sid = subscription._id  # pyright: ignore[reportPrivateUsage]
        self.client.direct[sid] = handler
        return Inlet(self.client, sid, subject)

    async def send(self, subject: str, data: bytes, reply: str = "", header: bytes | None = None) -> None:
        """Hand a message to the connection. Raises BusError if the connection is closed or its buffer full."""
        try:
            await self.client.send(subject, data, reply, header)
            if self.client.pending_data_size > MAX_UNSENT_BYTES:
                await self.client.flush()
        except (NatsError, OSError, TimeoutError) as error:
            raise BusError(f"cannot send on {subject}: {type(error).__name__} {error}".strip()) from error

    async def flush(self, timeout_s: float) -> None:
        """Wait until the broker has read everything sent so far. Raises BusError after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.client.flush()
        except (NatsError, OSError, TimeoutError) as error:
            raise BusError(f"the broker did not take what was sent within {timeout_s:g} s") from error

    def reply_subject(self) -> tuple[str, str]:
        """A fresh reply subject and its token."""
        self._n_tokens += 1
        token = str(self._n_tokens)
        return f"{self.prefix}.{token}", token

    def expect(self, token: str) -> asyncio.Future[Packet]:
        """The future that the message to this token will resolve."""
        future: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        return future

    def forget(self, token: str) -> None:
        """Wait for this token no longer."""
        self._waiting.pop(token, None)

    def _on_reply(self, packet: Packet) -> None:
        future = self._waiting.pop(packet.subject.rpartition(".")[2], None)
        if future is not None and not future.done():
            future.set_result(packet)

    @property
    def is_settling(self) -> bool:
        """Whether the connection was lost and is not back for long: others may not be back yet."""
        if not self.connected.is_set():
            return True
        return self.n_reconnects > 0 and self.platform.monotonic() - self._connected_s < SETTLE_S

    async def request(self, subject: str, data: bytes, timeout_s: float, header: bytes | None = None) -> Packet:
        """One message, one answer. Raises NoResponderError at once if nobody listens, RequestTimeoutError in the end."""
        inbox, token = self.reply_subject()
        future = self.expect(token)
        try:
            async with asyncio.timeout(timeout_s):
                await self.send(subject, data, inbox, header)
                packet = await future
        except TimeoutError:
            raise RequestTimeoutError(f"no answer on {subject} within {timeout_s:g} s") from None
        finally:
            self.forget(token)
        if packet.status == NO_RESPONDERS and not packet.data:
            raise NoResponderError(f"nobody listens on {subject}")
        return packet


async def _never(_message: object) -> None:
    """The callback the client asks for."""
