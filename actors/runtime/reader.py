"""Reading a stream in order over an ephemeral consumer that is made anew, at the next sequence, after any disturbance."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable

from actors.runtime.bus import Stored, StreamInfo
from actors.runtime.decoding import stored_of
from actors.runtime.jsapi import STREAM_MISSING, ApiRefusal, JetStreamApi
from actors.runtime.pull import PullSession, Watchdog
from actors.runtime.waking import Signal
from actors.runtime.wire import Packet, Wire
from asearch.errors import BusError, StreamRewoundError

log = logging.getLogger(__name__)

BATCH = 256
REOPEN_S = 0.1


def delivery_fields(reply: str) -> list[str]:
    """Stream, consumer, times delivered, stream sequence, consumer sequence, time, pending: from an ack subject."""
    tokens = reply.split(".")
    return tokens[2:9] if len(tokens) == 9 else tokens[4:11]


class Reader:
    """One ordered read. Holds at most BATCH messages that were not handed out."""

    def __init__(
        self,
        wire: Wire,
        api: JetStreamApi,
        watchdog: Watchdog,
        stream: str,
        *,
        filters: list[str],
        start_sequence: int,
        batch: int = BATCH,
        on_malformed: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._api = api
        self._watchdog = watchdog
        self._stream = stream
        self._filters = filters
        self._batch = batch
        self._on_malformed = on_malformed
        self._position = start_sequence - 1
        self._position_ns = 0
        self._epoch: str | None = None
        self._buffer: deque[Packet] = deque()
        self._signal = Signal()
        self._trouble: str | None = None
        self._session: PullSession | None = None
        self._name = ""
        self._n_received = 0
        self._is_idle = False

    async def messages(self, *, follow: bool) -> AsyncGenerator[Stored, None]:
        """The messages, for ever or up to what was stored when it was called."""
        info = await self._api.stream_info(self._stream)
        end = None if follow else info.last_sequence
        reconnected = self._on_reconnect
        self._wire.on_reconnect.append(reconnected)
        try:
            while end is None or self._position < end:
                n_before = await self._open()
                if end is not None and n_before == 0:
                    return
                while self._trouble is None:
                    if not self._buffer:
                        if end is not None and self._is_idle and await self._nothing_left():
                            return
                        await self._signal.wait()
                        # A request that expired unanswered has to be made again, or a quiet stream is never heard again.
                        await self._top_up()
                    while self._buffer and self._trouble is None:
                        taken = self._take(self._buffer.popleft())
                        if taken is None:
                            break
                        stored, n_after = taken
                        if end is not None and stored.sequence > end:
                            return
                        yield stored
                        if end is not None and (stored.sequence >= end or n_after == 0):
                            return
                        await self._top_up()
                await self._close_session()
        finally:
            self._wire.on_reconnect.remove(reconnected)
            await self._close_session()

    async def _open(self) -> int:
        """A new consumer after the position; returns how many messages lie before it."""
        while True:
            self._trouble = None
            self._buffer.clear()
            self._n_received = 0
            self._is_idle = False
            try:
                await self._check_history(await self._api.stream_info(self._stream))
                self._name = f"read-{self._wire.platform.new_id()[:16]}"
                n_before = await self._api.create_reader(self._stream, self._name, self._position + 1, self._filters)
            except StreamRewoundError:
                raise
            except BusError as error:
                if self._wire.client.is_closed or (isinstance(error, ApiRefusal) and error.err_code == STREAM_MISSING):
                    raise
                log.warning("reading %s: %s; trying again", self._stream, error)
                await self._wire.platform.sleep(REOPEN_S)
                continue
            self._session = PullSession(
                self._wire,
                self._api.stream(self._stream),
                self._name,
                on_message=self._on_message,
                on_idle=self._on_idle,
                broken=self._on_broken,
            )
            await self._session.open()
            self._watchdog.sessions.add(self._session)
            await self._session.ask(self._batch)
            return n_before

    async def _check_history(self, info: StreamInfo) -> None:
        if self._epoch is not None and info.epoch != self._epoch:
            raise StreamRewoundError(f"stream {self._stream} was made anew: what was read of it is void")
        self._epoch = info.epoch
        if info.last_sequence < self._position:
            raise StreamRewoundError(
                f"stream {self._stream} ends at {info.last_sequence}, but was read up to {self._position}: "
                "the broker lost its tail"
            )
        if self._position_ns:
            there = await self._api.at(self._stream, self._position)
            if there is not None and there.at_ns != self._position_ns:
                raise StreamRewoundError(f"message {self._position} of stream {self._stream} is not the one that was read")

    def _on_message(self, packet: Packet) -> None:
        self._is_idle = False
        self._buffer.append(packet)
        self._signal.set()

    def _on_idle(self) -> None:
        self._is_idle = True
        self._signal.set()

    def _on_broken(self, reason: str) -> None:
        self._trouble = reason
        self._watchdog.n_replaced += 1
        self._signal.set()

    def _on_reconnect(self) -> None:
        if self._session is not None:
            self._trouble = "reconnected"
            self._signal.set()

    def _take(self, packet: Packet) -> tuple[Stored, int] | None:
        """The message and how many lie behind it; None if one before it was lost on the way."""
        fields = delivery_fields(packet.reply)
        sequence, in_order, at_ns, n_after = int(fields[3]), int(fields[4]), int(fields[5]), int(fields[6])
        self._n_received += 1
        if in_order != self._n_received:
            self._trouble = "a message was lost between broker and client"
            return None
        traceparent = packet.field(b"traceparent") if packet.header and b"traceparent" in packet.header else None
        stored = stored_of(self._stream, packet.subject, sequence, packet.data, at_ns, traceparent)
        if stored.malformed is not None:
            self._on_malformed()
        self._position, self._position_ns = sequence, at_ns
        return stored, n_after

    async def _top_up(self) -> None:
        session = self._session
        if session is not None:
            wanted = self._batch - session.n_requested - len(self._buffer)
            if wanted * 2 >= self._batch:
                await session.ask(wanted)

    async def _nothing_left(self) -> bool:
        """Whether what was still to come has been purged meanwhile."""
        self._is_idle = False
        n_pending, n_delivered = await self._api.reader_progress(self._stream, self._name)
        return n_pending == 0 and n_delivered == self._n_received

    async def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._watchdog.sessions.discard(session)
            await session.close()
            if self._wire.connected.is_set():
                await self._api.delete_consumer(self._stream, self._name)
