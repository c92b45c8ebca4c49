"""Working off a durable queue: one pull session, as many messages asked for as handlers are free."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from actors.runtime.bus import Handler, Stored
from actors.runtime.decoding import backoff_s, stored_of
from actors.runtime.pull import PullSession, Watchdog
from actors.runtime.reader import delivery_fields
from actors.runtime.waking import Signal, report_failure
from actors.runtime.wire import Packet, Wire
from asearch.errors import BusError
from schemas.topology import Consumer, broker_stream

log = logging.getLogger(__name__)

REOPEN_S = 0.2
DRAIN_LINGER_S = 1.0


class JetStreamDelivery:
    """One delivery; its acknowledgement goes to the subject the broker gave, over the connection on which it came.

    A broker that was restarted may have lost the tail of a stream and given its sequences to other facts. An answer that
    names a sequence of before would settle such a fact unseen.
    """

    __slots__ = ("_connection", "_reply", "_wire", "n_delivered", "stored")

    def __init__(self, wire: Wire, reply: str, stored: Stored, n_delivered: int) -> None:
        self._wire = wire
        self._reply = reply
        self._connection = wire.n_reconnects
        self.stored = stored
        self.n_delivered = n_delivered

    async def _answer(self, data: bytes) -> None:
        # An answer that is lost costs one more delivery, which every handler must bear anyway.
        if not self._wire.connected.is_set() or self._wire.n_reconnects != self._connection:
            log.info("%s %d was delivered before the connection was lost: not answered", self.stored.stream, self.stored.sequence)
            return
        try:
            await self._wire.send(self._reply, data)
        except BusError as error:
            log.warning("acknowledgement of %s %d lost: %s", self.stored.stream, self.stored.sequence, error)

    async def ack(self) -> None:
        """The work is done."""
        await self._answer(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver again after the delay."""
        await self._answer(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    async def in_progress(self) -> None:
        """Start the acknowledgement wait over."""
        await self._answer(b"+WPI")

    async def term(self) -> None:
        """Never deliver again."""
        await self._answer(b"+TERM")


class DurableQueue:
    """A subscription to a durable consumer."""

    def __init__(
        self,
        wire: Wire,
        watchdog: Watchdog,
        run: str,
        row: Consumer,
        handler: Handler,
        *,
        concurrency: int,
        on_malformed: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._watchdog = watchdog
        self._row = row
        self._stream = broker_stream(run, row.stream)
        self._handler = handler
        self._concurrency = max(1, concurrency)
        self._on_malformed = on_malformed
        self._running: set[asyncio.Task[None]] = set()
        self._signal = Signal()
        self._trouble: str | None = None
        self._draining = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"consume-{row.name}")
        self._task.add_done_callback(report_failure)

    async def _run(self) -> None:
        self._wire.on_reconnect.append(self._on_reconnect)
        try:
            while not self._draining:
                session = PullSession(
                    self._wire,
                    self._stream,
                    self._row.name,
                    on_message=self._on_message,
                    on_idle=self._signal.set,
                    broken=self._on_broken,
                )
                try:
                    await self._pull(session)
                except BusError as error:
                    if self._wire.client.is_closed:
                        return
                    self._trouble = str(error)
                if self._trouble is not None:
                    log.log(
                        logging.INFO if self._trouble == "reconnected" else logging.WARNING,
                        "queue %s pulls anew: %s",
                        self._row.name,
                        self._trouble,
                    )
                    await self._wire.platform.sleep(REOPEN_S)
        finally:
            self._wire.on_reconnect.remove(self._on_reconnect)

    async def _pull(self, session: PullSession) -> None:
        self._trouble = None
        await session.open()
        self._watchdog.sessions.add(session)
        try:
            while self._trouble is None and not self._draining:
                free = self._concurrency - len(self._running) - session.n_requested
                if free * 2 >= self._concurrency or (free > 0 and session.n_requested <= 0):
                    await session.ask(free)
                await self._signal.wait()
        finally:
            self._watchdog.sessions.discard(session)
            # What arrives while draining is given back at once instead of after its acknowledgement wait.
            await session.close(DRAIN_LINGER_S if self._draining else 0.0)

    def _on_message(self, packet: Packet) -> None:
        fields = delivery_fields(packet.reply)
        traceparent = packet.field(b"traceparent") if packet.header and b"traceparent" in packet.header else None
        stored = stored_of(self._row.stream, packet.subject, int(fields[3]), packet.data, int(fields[5]), traceparent)
        if stored.malformed is not None:
            self._on_malformed()
        delivery = JetStreamDelivery(self._wire, packet.reply, stored, int(fields[2]))
        task = asyncio.get_running_loop().create_task(self._handle(delivery))
        self._running.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._signal.set()

    async def _handle(self, delivery: JetStreamDelivery) -> None:
        if self._draining:
            await delivery.nak()
            return
        try:
            await self._handler(delivery)
        except asyncio.CancelledError:
            await delivery.nak()
            raise
        except Exception:
            log.exception("handler of queue %s failed on %s", self._row.name, delivery.stored.subject)
            await delivery.nak(backoff_s(delivery.n_delivered))

    def _on_broken(self, reason: str) -> None:
        self._trouble = reason
        self._watchdog.n_replaced += 1
        self._signal.set()

    def _on_reconnect(self) -> None:
        self._trouble = "reconnected"
        self._signal.set()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for running handlers, cancel the rest after the timeout."""
        self._draining = True
        self._signal.set()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait([self._task])
                while self._running:
                    await asyncio.wait(self._running)
        except TimeoutError:
            log.warning("queue %s: %d handlers cancelled after %g s", self._row.name, len(self._running), timeout_s)
            self._task.cancel()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def wait(self) -> None:
        """Return when stopped; raises what ended it."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._task)

    def cancel(self) -> None:
        """Stop at once."""
        self._draining = True
        self._task.cancel()
        for task in self._running:
            task.cancel()
