"""Long-lived pulls on a consumer: one inbox, topped up, watched by heartbeats, opened anew when anything is odd."""

import logging
from collections.abc import Callable

import msgspec

from actors.runtime.wire import Inlet, Packet, Wire
from asearch.errors import BusError

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
EXPIRES_S = 60.0
SILENT_TICKS = 3
NANO = 1_000_000_000
HEARTBEAT = 100
ENDED = frozenset({404, 408})


class PullSession:
    """An inbox with outstanding pull requests on one consumer.

    `n_requested` is what was asked for and has not arrived. `broken` is called once if the session must be replaced: the
    consumer is gone, the broker was restarted, or it was silent for SILENT_TICKS heartbeats of the watchdog.
    """

    def __init__(
        self,
        wire: Wire,
        stream: str,
        consumer: str,
        *,
        on_message: Callable[[Packet], None],
        on_idle: Callable[[], None],
        broken: Callable[[str], None],
    ) -> None:
        self._wire = wire
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._on_message = on_message
        self._on_idle = on_idle
        self._broken = broken
        self._inlet: Inlet | None = None
        self._inbox = ""
        self._silent = 0
        self._is_broken = False
        self.n_requested = 0

    async def open(self) -> None:
        """Listen on a fresh inbox."""
        self._inbox = f"{self._wire.prefix}l.{self._wire.platform.new_id()[:16]}"
        self._inlet = await self._wire.listen(self._inbox, self._on_packet)

    async def ask(self, n: int) -> None:
        """Request `n` further messages."""
        self.n_requested += n
        request = {"batch": n, "expires": int(EXPIRES_S * NANO), "idle_heartbeat": int(HEARTBEAT_S * NANO)}
        try:
            await self._wire.send(self._subject, msgspec.json.encode(request), self._inbox)
        except BusError as error:
            self._break(str(error))

    def tick(self) -> None:
        """Called by the watchdog once a heartbeat. Ticks, not seconds: a stalled event loop must not look like silence."""
        if self.n_requested <= 0 or not self._wire.connected.is_set():
            self._silent = 0
            return
        self._silent += 1
        if self._silent > SILENT_TICKS:
            self._break(f"silent for {SILENT_TICKS} heartbeats")

    def _on_packet(self, packet: Packet) -> None:
        self._silent = 0
        if packet.header is None or not (status := packet.status):
            self.n_requested -= 1
            self._on_message(packet)
        elif status == HEARTBEAT:
            self._on_idle()
        elif status in ENDED or packet.field(b"Nats-Pending-Messages") is not None:
            # An ended request gives back what it did not deliver.
            self.n_requested -= int(packet.field(b"Nats-Pending-Messages") or 0)
            self._on_idle()
        else:
            line = packet.header[9:60].split(b"\r\n")[0].decode("utf-8", "replace")
            self._break(line or str(status))

    def _break(self, reason: str) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._broken(reason)

    async def close(self, linger_s: float = 0.0) -> None:
        """Stop listening; the broker drops requests without a listener."""
        if self._inlet is not None:
            await self._inlet.close(linger_s)


class Watchdog:
    """Ticks every session once a heartbeat."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.sessions: set[PullSession] = set()
        self.n_replaced = 0

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await self._wire.platform.sleep(HEARTBEAT_S)
            for session in list(self.sessions):
                session.tick()
