"""Core subscriptions: messages without a stream, handed to one handler in order from a bounded queue."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from actors.runtime.bus import CoreHandler
from actors.runtime.waking import Signal, report_failure
from schemas.codec import MalformedError, decode_message, encode
from schemas.commands import Message

log = logging.getLogger(__name__)

MAX_WAITING = 8192
MAX_WAITING_BYTES = 64 << 20

Send = Callable[[str, bytes], Awaitable[None]]
Raw = tuple[str, str, bytes, str | None]
"""Subject, reply subject (empty: none), payload, traceparent."""


class CoreMessage:
    """A core message that arrived."""

    __slots__ = ("_reply", "_send", "message", "subject", "traceparent")

    def __init__(self, subject: str, reply: str, message: Message, traceparent: str | None, send: Send) -> None:
        self.subject = subject
        self.message = message
        self.traceparent = traceparent
        self._reply = reply
        self._send = send

    @property
    def wants_reply(self) -> bool:
        """Whether the sender waits for `reply`."""
        return bool(self._reply)

    async def reply(self, message: Message) -> None:
        """Answer the sender."""
        if self._reply:
            await self._send(self._reply, encode(message))


class CoreSubscription:
    """Holds at most MAX_WAITING messages and MAX_WAITING_BYTES; what arrives beyond is dropped and counted."""

    def __init__(
        self,
        subject: str,
        handler: CoreHandler,
        send: Send,
        *,
        close: Callable[[], Awaitable[None]],
        count: Callable[[str], None],
    ) -> None:
        self._subject = subject
        self._handler = handler
        self._send = send
        self._close = close
        self._count = count
        self._waiting: deque[Raw] = deque()
        self._n_bytes = 0
        self._signal = Signal()
        self._draining = False
        self._overflowing = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"subscribe-{subject}")
        self._task.add_done_callback(report_failure)

    def offer(self, raw: Raw) -> None:
        """Take a message from the read loop."""
        if len(self._waiting) >= MAX_WAITING or self._n_bytes + len(raw[2]) > MAX_WAITING_BYTES:
            self._count("n_slow_consumer")
            if not self._overflowing:
                self._overflowing = True
                log.error("the handler of %s is too slow: messages are being dropped", self._subject)
            return
        self._waiting.append(raw)
        self._n_bytes += len(raw[2])
        self._signal.set()

    async def _run(self) -> None:
        while True:
            while self._waiting:
                subject, reply, data, traceparent = self._waiting.popleft()
                self._n_bytes -= len(data)
                await self._handle(subject, reply, data, traceparent)
            self._overflowing = False
            if self._draining:
                return
            await self._signal.wait()

    async def _handle(self, subject: str, reply: str, data: bytes, traceparent: str | None) -> None:
        try:
            message = decode_message(data)
        except MalformedError as error:
            self._count("n_malformed")
            log.warning("message on %s dropped: %s", subject, error)
            return
        try:
            await self._handler(CoreMessage(subject, reply, message, traceparent, self._send))
        except Exception:
            log.exception("handler of %s failed", subject)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, handle what waits, cancel after the timeout."""
        await self._close()
        self._draining = True
        self._signal.set()
        await asyncio.wait([self._task], timeout=timeout_s)
        self._task.cancel()

    async def wait(self) -> None:
        """Return when stopped; raises what ended it."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._task)

    def cancel(self) -> None:
        """Stop at once."""
        self._task.cancel()
