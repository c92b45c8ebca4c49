"""The in-memory broker: streams, durable queues, core subjects, restarts. Single-threaded, no I/O, no clock of its own."""

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from actors.runtime.core import CoreSubscription
from actors.runtime.memory_queue import MemoryQueue
from actors.runtime.memory_stream import MemoryStream, Record, matches
from actors.runtime.platform import Platform
from asearch.errors import BusError
from schemas import topology


class Faults:
    """What may go wrong, all off. A simulation overrides what it wants; answers must come from a seeded source."""

    def delay_s(self, action: str, subject: str) -> float:
        """How long an action takes: `append`, `answer`, `ack`, `deliver`, `read`, `core`, `reconnect`.

        What one connection sends arrives in order; delays reorder between connections.
        """
        return 0.0

    def lose_acknowledgement(self, subject: str) -> bool:
        """Whether an append is stored but its writer does not hear of it at first."""
        return False

    def lose_ack(self, subject: str) -> bool:
        """Whether a handler's ack of a delivery gets lost, so that it is delivered again."""
        return False

    def deliver_twice(self, subject: str) -> bool:
        """Whether a queued fact is delivered to two handlers at once."""
        return False

    def redelivered(self, subject: str) -> None:
        """A queued fact is delivered again; for counting."""

    def acked_late(self, subject: str) -> None:
        """A delivery was acknowledged although a later one had begun, and the broker took it; for counting."""


class Connection(Protocol):
    """What the broker knows of a bus."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker hears it."""
        ...

    def disconnected(self) -> None:
        """The connection is lost, with whatever was on its way."""
        ...

    def reconnected(self) -> None:
        """The connection is there again."""
        ...


@dataclass
class MemoryBroker:
    """What all buses of one process share."""

    platform: Platform
    faults: Faults = field(default_factory=Faults)
    streams: dict[tuple[str, str], MemoryStream] = field(default_factory=dict[tuple[str, str], MemoryStream])
    queues: dict[tuple[str, str], MemoryQueue] = field(default_factory=dict[tuple[str, str], MemoryQueue])
    core: dict[str, list[tuple[Connection, CoreSubscription]]] = field(
        default_factory=dict[str, list[tuple[Connection, CoreSubscription]]]
    )
    replies: dict[str, Callable[[bytes], None]] = field(default_factory=dict[str, Callable[[bytes], None]])
    buses: dict[Connection, None] = field(default_factory=dict[Connection, None])
    is_up: bool = True
    n_outages: int = 0
    """Outages without a duration: all connections were lost and made again at once, as a tail lost while `is_up` implies."""

    def __post_init__(self) -> None:
        self._context = contextvars.copy_context()

    def later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back in the broker's own context: what it does must not depend on whose message it works on."""
        return asyncio.get_running_loop().call_later(delay_s, callback, context=self._context)

    def redelivers(self, subject: str) -> None:
        """Told of every further delivery of a message."""
        self.faults.redelivered(subject)

    def takes_late_ack(self, subject: str) -> None:
        """Told of an ack of a delivery that was followed by another one."""
        self.faults.acked_late(subject)

    def delivers_twice(self, subject: str) -> bool:
        """Whether a fault delivers this message to two handlers."""
        return self.faults.deliver_twice(subject)

    def stream(self, run: str, name: str) -> MemoryStream:
        """A stream of a run. Raises BusError if there is none."""
        try:
            return self.streams[run, name]
        except KeyError:
            raise BusError(f"run {run!r} has no stream {name!r} on this broker") from None

    def queue(self, run: str, name: str) -> MemoryQueue:
        """A durable queue of a run. Raises BusError if there is none."""
        try:
            return self.queues[run, name]
        except KeyError:
            raise BusError(f"run {run!r} has no queue {name!r} on this broker") from None

    def forget(self, run: str) -> None:
        """Delete the streams and queues of a run."""
        for key in [key for key in self.streams if key[0] == run]:
            del self.streams[key]
        for key in [key for key in self.queues if key[0] == run]:
            del self.queues[key]

    def ensure(self, run: str, max_bytes: dict[str, int]) -> None:
        """Create or update the streams and queues of a run."""
        for row in topology.TOPOLOGY.streams:
            bound = max_bytes.get(row.name, row.max_bytes)
            stream = self.streams.get((run, row.name))
            if stream is None:
                stream = self.streams[run, row.name] = MemoryStream(row, bound, str(self.platform.now_ns()))
                stream.on_lost.append(self._lost)
            else:
                stream.max_bytes = bound
        for row in topology.TOPOLOGY.consumers:
            if (run, row.name) not in self.queues:
                filters = [topology.any_key(run, event) for event in row.events]
                self.queues[run, row.name] = MemoryQueue(row, self.stream(run, row.stream), filters, self)

    def listeners(self, subject: str) -> list[CoreSubscription]:
        """The core subscriptions that a subject reaches."""
        found = [each for pattern, held in self.core.items() if matches(pattern, subject) for each in held]
        return [subscription for bus, subscription in found if bus.is_connected]

    def inject(self, run: str, stream: str, subject: str, data: bytes) -> int:
        """Store arbitrary bytes, as a foreign publisher would."""
        record = Record(subject, 0, data, self.platform.new_id(), self.platform.now_ns(), None)
        return self.stream(run, stream).append(record, self.platform.monotonic(), None, False)[0]

    # --- restarts ---

    def _lost(self, _last_sequence: int) -> None:
        self.n_outages += self.is_up

    def go_down(self) -> None:
        """Die: every connection breaks, what is on its way is lost, nothing is stored or delivered any more."""
        self.is_up = False
        for bus in list(self.buses):
            bus.disconnected()

    def come_back(self) -> None:
        """Start again with what was stored. Every connection is made anew in its own time."""
        self.is_up = True
        for stream in self.streams.values():
            stream.recover()
        for bus in list(self.buses):
            self.reconnect(bus)

    def reconnect(self, bus: Connection) -> None:
        """Make a lost connection anew after the time that this takes."""

        def connect() -> None:
            if self.is_up and bus in self.buses and not bus.is_connected:
                bus.reconnected()
                self.dispatch()

        self.later(self.faults.delay_s("reconnect", ""), connect)

    def dispatch(self) -> None:
        """Deliver what waits to whoever is connected; let readers look again."""
        for queue in self.queues.values():
            queue.dispatch()
        for stream in self.streams.values():
            stream.wake()
