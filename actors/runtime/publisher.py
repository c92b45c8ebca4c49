"""Appends: pipelined publishes with acknowledgements by token, retried under the same message id while in doubt."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

import msgspec

from actors.runtime.wire import Packet, Wire
from asearch.errors import BusError, ConflictError, NotStoredError, StreamFullError

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 256
MAX_IN_FLIGHT_BYTES = 16 << 20
RETRY_S = 5.0
UNREADY_RETRY_S = 0.2
SWEEP_S = 0.1
UNSTORED = (
    "the broker answers but does not store it. Most often the disk of its store is full: `asearch status` names the folder; "
    "free space there, and the run goes on"
)

WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
FULL = frozenset({10023, 10047, 10077})


class _ApiError(msgspec.Struct, gc=False):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, gc=False):
    """The broker's answer to a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_acks = msgspec.json.Decoder(PubAck)


@dataclass(slots=True, eq=False)
class _Entry:
    subject: str
    data: bytes
    header: bytes | None
    future: "asyncio.Future[PubAck]"
    deadline: float
    inbox: str
    retry_at: float
    n_tries: int = 0
    last_trouble: str = ""


class Publisher:
    """Appends of one connection: at most MAX_IN_FLIGHT messages and MAX_IN_FLIGHT_BYTES not yet acknowledged."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._platform = wire.platform
        self._entries: dict[str, _Entry] = {}
        self._n_bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._prefix = f"{wire.prefix}p"
        self._n_tokens = 0
        self._closed = False
        self.n_retries = 0

    async def open(self) -> None:
        """Listen for acknowledgements."""
        await self._wire.listen(f"{self._prefix}.*", self._on_ack)
        self._wire.on_reconnect.append(self._retry_all)

    @property
    def n_in_flight(self) -> int:
        """Appends not yet acknowledged."""
        return len(self._entries)

    async def publish(self, subject: str, data: bytes, header: bytes | None, timeout_s: float) -> tuple[PubAck, int]:
        """Store a message. Returns the acknowledgement and how many times it was sent.

        Raises ConflictError, StreamFullError, BusError at once if it is too large, or NotStoredError if it is not known to be
        stored after the timeout.
        """
        if self._closed:
            raise BusError(f"cannot append to {subject}: the connection is closed")
        size, most = len(data) + len(header or b""), self._wire.client.max_payload
        if size > most:
            raise BusError(f"cannot append to {subject}: {size} bytes are more than one message holds ({most}); use BLOBS")
        deadline = self._platform.monotonic() + timeout_s
        while not self._closed and self._is_full(len(data)):
            await self._wait_for_room(subject, deadline)
        if self._closed:
            raise BusError(f"cannot append to {subject}: the connection was closed")
        self._n_tokens += 1
        token = str(self._n_tokens)
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        entry = _Entry(subject, data, header, future, deadline, f"{self._prefix}.{token}", 0.0)
        self._entries[token] = entry
        self._n_bytes += len(data)
        try:
            await self._send(entry)
            return await future, entry.n_tries
        finally:
            del self._entries[token]
            self._n_bytes -= len(data)
            self._wake_one()

    def _is_full(self, n_bytes: int) -> bool:
        return len(self._entries) >= MAX_IN_FLIGHT or (bool(self._entries) and self._n_bytes + n_bytes > MAX_IN_FLIGHT_BYTES)

    async def _wait_for_room(self, subject: str, deadline: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(max(0.0, deadline - self._platform.monotonic())):
                await waiter
        except TimeoutError:
            self._pass_on(waiter)
            message = f"an append to {subject} was not sent: {len(self._entries)} appends before it are not acknowledged"
            raise NotStoredError(f"{message}; {self._trouble('')}") from None
        except asyncio.CancelledError:
            self._pass_on(waiter)
            raise

    def _pass_on(self, waiter: "asyncio.Future[None]") -> None:
        """Whoever stops waiting leaves the room that it was given to the next."""
        if waiter.done() and not waiter.cancelled():
            self._wake_one()

    def _trouble(self, last: str) -> str:
        return last or (UNSTORED if self._wire.connected.is_set() else "the broker is not connected")

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _send(self, entry: _Entry) -> None:
        entry.retry_at = self._platform.monotonic() + RETRY_S
        if not self._wire.connected.is_set():
            entry.last_trouble = "the broker is not connected"
            return
        entry.n_tries += 1
        entry.last_trouble = ""
        try:
            await self._wire.send(entry.subject, entry.data, entry.inbox, entry.header)
        except BusError as error:
            entry.last_trouble = str(error)

    def _on_ack(self, packet: Packet) -> None:
        entry = self._entries.get(packet.subject.rpartition(".")[2])
        if entry is None or entry.future.done():
            return
        if not packet.data:
            # Nobody took it: the broker has not recovered the stream yet, or there is none.
            entry.retry_at = self._platform.monotonic() + UNREADY_RETRY_S
            entry.last_trouble = "no stream takes this subject"
            return
        try:
            ack = _acks.decode(packet.data)
        except msgspec.DecodeError as error:
            entry.last_trouble = f"unreadable acknowledgement ({error})"
            return
        if ack.error is None:
            entry.future.set_result(ack)
        else:
            entry.future.set_exception(_refusal(entry.subject, ack.error))

    def _retry_all(self) -> None:
        for entry in self._entries.values():
            entry.retry_at = 0.0

    async def sweep(self) -> None:
        """Send again what is in doubt, give up on what is past its deadline. Runs until cancelled."""
        while True:
            await self._platform.sleep(SWEEP_S)
            now = self._platform.monotonic()
            for entry in list(self._entries.values()):
                if entry.future.done():
                    continue
                if now >= entry.deadline:
                    message = f"an append to {entry.subject} is not known to be stored after {entry.n_tries} tries"
                    entry.future.set_exception(NotStoredError(f"{message}: {self._trouble(entry.last_trouble)}"))
                elif now >= entry.retry_at and self._wire.connected.is_set():
                    self.n_retries += 1
                    await self._send(entry)

    async def wait_empty(self) -> None:
        """Wait until every append has been acknowledged or has failed."""
        while self._entries:
            await self._platform.sleep(0.01)

    def close(self) -> None:
        """Fail what is in flight and what waits for room."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for entry in self._entries.values():
            if not entry.future.done():
                message = f"the connection was closed before an append to {entry.subject} was known to be stored"
                entry.future.set_exception(BusError(message))


def _refusal(subject: str, error: _ApiError) -> BusError:
    if error.err_code in WRONG_LAST_SEQUENCE:
        return ConflictError(f"somebody else has appended before {subject}: {error.description}")
    if error.err_code in FULL:
        return StreamFullError(f"the stream of {subject} takes no more: {error.description}; purge it or raise its bound")
    return BusError(f"the broker refused {subject}: {error.description} ({error.code}/{error.err_code})")
