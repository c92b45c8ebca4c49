"""A connection to the in-memory broker: what is sent arrives later, in order, or not at all; the connection may be lost."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import Platform
from asearch.errors import BusError, NoResponderError, RequestTimeoutError

T = TypeVar("T")

MAX_UNSENT = 1 << 14
GAP_S = 1e-6
"""Between two things that one connection sends: they arrive in this order."""
TRY_S = 5.0
TOTAL_S = 30.0
UNREADY_S = 0.1
CONNECT_TIMEOUT_S = 15.0


SETTLE_S = 3.0
"""How long after a reconnect silence may mean that a listener is not connected again yet."""


class Unanswered(RequestTimeoutError):
    """No answer came: the request may or may not have arrived."""


class MemoryWire:
    """One connection."""

    def __init__(self, broker: MemoryBroker, actor: str, platform: Platform) -> None:
        self.broker = broker
        self.actor = actor
        self.platform = platform
        self.is_closed = False
        self.n_reconnects = 0
        self._connected = asyncio.Event()
        if broker.is_up:
            self._connected.set()
        self._arrived_s = 0.0
        self._connected_s = 0.0
        self._connection = 0
        self._unsent: deque[tuple[str, str, Callable[[], None]]] = deque(maxlen=MAX_UNSENT)
        self._in_doubt: dict[asyncio.Future[object], None] = {}
        broker.buses[self] = None

    @property
    def is_connected(self) -> bool:
        """Whether the broker hears this connection."""
        return self._connected.is_set()

    async def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Wait for the connection. Raises BusError if the broker stays away."""
        if not await self.until_connected(timeout_s):
            raise BusError(f"no broker within {timeout_s:g} s: is the broker up?")

    @property
    def is_settling(self) -> bool:
        """Whether the connection was lost and is not back for long."""
        if not self.is_connected:
            return True
        return self.n_reconnects > 0 and self.platform.monotonic() - self._connected_s < SETTLE_S

    async def until_connected(self, timeout_s: float) -> bool:
        """Wait for the connection; whether it came in time."""
        if self.is_connected:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    def check_open(self) -> None:
        """Raises BusError if the connection was closed."""
        if self.is_closed:
            raise BusError(f"the connection of {self.actor} is closed")

    # --- the broker's side ---

    def disconnected(self) -> None:
        """The connection is lost, with whatever was on its way."""
        self._connected.clear()
        self._connection += 1

    def reconnected(self) -> None:
        """The connection is there again: what waited is sent, what is in doubt is asked again."""
        self._connected.set()
        self._connected_s = self.platform.monotonic()
        self.n_reconnects += 1
        waiting, self._unsent = self._unsent, deque(maxlen=MAX_UNSENT)
        for action, subject, effect in waiting:
            self.send(action, subject, effect)
        for future in list(self._in_doubt):
            _resolve(future, None)

    def cut(self) -> None:
        """End it without a word, as the end of the process does."""
        self.is_closed = True
        self._connected.clear()
        self.broker.buses.pop(self, None)

    # --- the client's side ---

    def send(self, action: str, subject: str, effect: Callable[[], None]) -> None:
        """Have the broker do something when this arrives. While the connection is lost it waits."""
        if not self.is_connected:
            self._unsent.append((action, subject, effect))
            return
        now_s = self.platform.monotonic()
        self._arrived_s = max(now_s + self.broker.faults.delay_s(action, subject), self._arrived_s + GAP_S)
        connection = self._connection

        def arrive() -> None:
            if self.broker.is_up and connection == self._connection:
                effect()

        self.broker.later(self._arrived_s - now_s, arrive)

    async def exchange(self, action: str, subject: str, effect: Callable[[], T], patience_s: float, lossy: bool = False) -> T:
        """Have the broker do something and wait for what came of it. Raises what it raised, or Unanswered."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def act() -> None:
            answer: tuple[T | None, Exception | None]
            try:
                answer = (effect(), None)
            except Exception as error:
                answer = (None, error)
            if lossy and self.broker.faults.lose_acknowledgement(subject):
                return
            connection = self._connection
            back_s = self.broker.faults.delay_s("answer", subject)
            self.broker.later(back_s, lambda: _resolve(future, answer) if connection == self._connection else None)

        self._in_doubt[future] = None
        timer = asyncio.get_running_loop().call_later(patience_s, _resolve, future, None)
        try:
            self.send(action, subject, act)
            answer = await future
        finally:
            timer.cancel()
            self._in_doubt.pop(future, None)
        if not isinstance(answer, tuple):
            raise Unanswered(f"no answer on {subject} within {patience_s:g} s")
        value, error = answer
        if error is not None:
            raise error
        return value

    async def exchange_core(self, subject: str, data: bytes, patience_s: float, traceparent: str | None) -> bytes:
        """One core message, one answer. Raises NoResponderError, or Unanswered also when the connection was lost."""
        inbox = f"_INBOX.{self.platform.new_id()}"
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        connection = self._connection

        def offer() -> None:
            listeners = self.broker.listeners(subject)
            if not listeners:
                answer(b"")
            for listener in listeners:
                listener.offer((subject, inbox, data, traceparent))

        def answer(reply: bytes) -> None:
            if self.is_connected and connection == self._connection:
                _resolve(future, reply)

        self._in_doubt[future] = None
        self.broker.replies[inbox] = answer
        timer = asyncio.get_running_loop().call_later(patience_s, _resolve, future, None)
        try:
            self.send("core", subject, offer)
            reply = await future
        finally:
            timer.cancel()
            self._in_doubt.pop(future, None)
            self.broker.replies.pop(inbox, None)
        if not isinstance(reply, bytes):
            raise Unanswered(f"no answer on {subject} within {patience_s:g} s")
        if not reply:
            raise NoResponderError(f"nobody listens on {subject}")
        return reply

    async def ask(self, what: str, effect: Callable[[], T]) -> T:
        """A request that may be repeated until it is answered. Raises BusError after TOTAL_S."""
        deadline_s = self.platform.monotonic() + TOTAL_S
        while True:
            self.check_open()
            left_s = deadline_s - self.platform.monotonic()
            if self.is_connected:
                try:
                    return await self.exchange("read", what, effect, min(TRY_S, max(left_s, UNREADY_S)))
                except Unanswered:
                    pass
            if left_s <= UNREADY_S:
                raise BusError(f"the broker did not answer {what} within {TOTAL_S:g} s")
            await self.platform.sleep(UNREADY_S)

    def fail_all(self) -> None:
        """Let whoever waits for an answer see that the connection is closed."""
        for future in list(self._in_doubt):
            _resolve(future, None)


def _resolve(future: "asyncio.Future[object]", value: object) -> None:
    if not future.done():
        future.set_result(value)
