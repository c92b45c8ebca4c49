"""The state of an in-memory broker: streams, durable queues, core subjects. Single-threaded, no I/O, no clock of its own."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.runtime.bus import DUPLICATE_WINDOW_S
from actors.runtime.core import CoreSubscription
from actors.runtime.platform import Platform
from actors.runtime.waking import Signal
from asearch.errors import BusError, ConflictError, StreamFullError
from schemas import topology

OVERHEAD_BYTES = 64
"""What a stored message costs beyond its subject and bytes; about what the real broker takes."""


class Faults:
    """What may go wrong, all off. A simulation overrides what it wants; answers must come from a seeded source."""

    def delay_s(self, action: str, subject: str) -> float:
        """How long an action takes: `append`, `deliver`, `read`, `core` (delays reorder between subjects, not within one)."""
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


@dataclass(slots=True)
class Record:
    """One stored message."""

    subject: str
    sequence: int
    data: bytes
    message_id: str
    at_ns: int
    traceparent: str | None

    @property
    def n_bytes(self) -> int:
        """What it counts against the stream's bound."""
        return len(self.data) + len(self.subject) + OVERHEAD_BYTES


def key_of(subject: str) -> str:
    """The key's tokens of a stored subject, joined by dots."""
    return subject.split(".", 5)[5]


def matches(subject_filter: str, subject: str) -> bool:
    """Whether a subject falls under a filter with `*` and a final `>`."""
    wanted, given = subject_filter.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


class MemoryStream:
    """A stream: messages by sequence, the last sequence of every key, recent ids."""

    def __init__(self, row: topology.Stream, max_bytes: int, epoch: str) -> None:
        self.row = row
        self.max_bytes = max_bytes
        self.epoch = epoch
        self.records: dict[int, Record] = {}
        self.by_key: dict[str, list[int]] = {}
        self.last_sequence = 0
        self.n_bytes = 0
        self.rewinds: list[int] = []
        """The last sequence after each loss of a tail."""
        self.queues: list[MemoryQueue] = []
        self.readers: dict[Signal, None] = {}
        """In the order in which they came: a set would wake them in another order every time."""
        self._ids: dict[str, tuple[int, float]] = {}

    def append(self, record: Record, now_s: float, expected: int | None, whole_stream: bool) -> tuple[int, bool]:
        """Store a message; returns its sequence and whether its id was stored before. Raises ConflictError, StreamFullError."""
        key = key_of(record.subject)
        if expected is not None:
            last = self.last_sequence if whole_stream else self.last_of(key)
            if last != expected:
                raise ConflictError(f"somebody else has appended before {record.subject}: the last sequence is {last}")
        known = self._ids.get(record.message_id)
        if known is not None and now_s - known[1] <= DUPLICATE_WINDOW_S:
            return known[0], True
        if self.n_bytes + record.n_bytes > self.max_bytes:
            message = f"the stream of {record.subject} takes no more: {self.n_bytes} of {self.max_bytes} bytes"
            raise StreamFullError(f"{message}; purge it or raise its bound")
        self.last_sequence += 1
        record.sequence = self.last_sequence
        self.records[record.sequence] = record
        self.by_key.setdefault(key, []).append(record.sequence)
        self._ids[record.message_id] = (record.sequence, now_s)
        self.n_bytes += record.n_bytes
        for queue in self.queues:
            queue.offer(record)
        for signal in self.readers:
            signal.set()
        return record.sequence, False

    def last_of(self, key: str) -> int:
        """The last sequence under a key, 0 if there is none."""
        sequences = self.by_key.get(key)
        return sequences[-1] if sequences else 0

    def delete(self, sequence: int) -> None:
        """Delete a message."""
        record = self.records.pop(sequence)
        self.n_bytes -= record.n_bytes
        key = key_of(record.subject)
        self.by_key[key].remove(sequence)
        if not self.by_key[key]:
            del self.by_key[key]

    def lose_tail(self, n: int) -> None:
        """Forget the last `n` messages as if they had never been stored: what a power cut does to unsynced writes."""
        for sequence in range(max(0, self.last_sequence - n) + 1, self.last_sequence + 1):
            if sequence in self.records:
                self._ids.pop(self.records[sequence].message_id, None)
                self.delete(sequence)
        self.last_sequence = max(0, self.last_sequence - n)
        self.rewinds.append(self.last_sequence)
        for queue in self.queues:
            queue.forget_after(self.last_sequence)
        for signal in self.readers:
            signal.set()


@dataclass(slots=True, eq=False)
class Outstanding:
    """A message that was delivered and not acknowledged."""

    record: Record
    n_delivered: int
    deadline: float
    waiting: bool = False
    timer: "asyncio.Task[None] | None" = None


@dataclass(slots=True, eq=False)
class Worker:
    """A subscription to a queue: `deliver` starts its handler."""

    concurrency: int
    deliver: Callable[[Record, int], None]
    n_running: int = 0


class MemoryQueue:
    """A durable queue. A message past its wait, or given back, is delivered again; `max_ack_pending` bounds what is out."""

    def __init__(
        self, row: topology.Consumer, stream: MemoryStream, filters: list[str], platform: Platform, faults: Faults
    ) -> None:
        self.row = row
        self._stream = stream
        self._filters = filters
        self._platform = platform
        self._faults = faults
        self.todo: deque[Record] = deque()
        self.again: deque[int] = deque()
        self.outstanding: dict[int, Outstanding] = {}
        self.workers: deque[Worker] = deque()

    def offer(self, record: Record) -> None:
        """A message was stored in the stream."""
        if any(matches(each, record.subject) for each in self._filters):
            self.todo.append(record)
            self.dispatch()

    def dispatch(self) -> None:
        """Deliver while there is a message and a free handler, to the workers in turn."""
        while self.again or (self.todo and len(self.outstanding) < self.row.max_ack_pending):
            if not any(each.n_running < each.concurrency for each in self.workers):
                return
            held = self._next()
            if held is None:
                continue
            held.waiting = False
            self.extend(held, self.row.ack_wait_s)
            self._start(held)
            if self._faults.deliver_twice(held.record.subject):
                held.n_delivered += 1
                self._start(held)

    def _next(self) -> Outstanding | None:
        """The next message to deliver; None if it has been settled or purged meanwhile."""
        if not self.again:
            record = self.todo.popleft()
            if record.sequence not in self._stream.records:
                return None
            held = self.outstanding[record.sequence] = Outstanding(record, 1, 0.0)
            return held
        held = self.outstanding.get(self.again.popleft())
        if held is None or not held.waiting:
            return None
        if held.record.sequence not in self._stream.records:
            del self.outstanding[held.record.sequence]
            return None
        held.n_delivered += 1
        return held

    def _start(self, held: Outstanding) -> None:
        worker = self._free_worker()
        if worker is not None:
            worker.n_running += 1
            worker.deliver(held.record, held.n_delivered)

    def _free_worker(self) -> Worker | None:
        for _ in range(len(self.workers)):
            worker = self.workers[0]
            self.workers.rotate(-1)
            if worker.n_running < worker.concurrency:
                return worker
        return None

    def extend(self, held: Outstanding, delay_s: float) -> None:
        """Deliver again unless something happens within the delay."""
        held.deadline = self._platform.monotonic() + delay_s
        if held.timer is None:
            held.timer = asyncio.get_running_loop().create_task(self._expire(held))

    def give_back(self, sequence: int, delay_s: float) -> None:
        """Deliver again after the delay."""
        held = self.outstanding.get(sequence)
        if held is None or held.waiting:
            return
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        if delay_s > 0:
            self.extend(held, delay_s)
        else:
            self._requeue(held)

    async def _expire(self, held: Outstanding) -> None:
        while (left_s := held.deadline - self._platform.monotonic()) > 0:
            await self._platform.sleep(left_s)
        held.timer = None
        self._requeue(held)

    def _requeue(self, held: Outstanding) -> None:
        held.waiting = True
        self.again.append(held.record.sequence)
        self.dispatch()

    def settle(self, sequence: int) -> None:
        """Never deliver again. The ack of an earlier delivery counts too."""
        held = self.outstanding.pop(sequence, None)
        if held is not None and held.timer is not None:
            held.timer.cancel()
        self.dispatch()

    def forget_after(self, last_sequence: int) -> None:
        """Forget messages that the stream has lost."""
        self.todo = deque(record for record in self.todo if record.sequence <= last_sequence)
        for sequence in [each for each in self.outstanding if each > last_sequence]:
            held = self.outstanding.pop(sequence)
            if held.timer is not None:
                held.timer.cancel()


@dataclass
class MemoryBroker:
    """What all buses of one process share."""

    platform: Platform
    faults: Faults = field(default_factory=Faults)
    streams: dict[tuple[str, str], MemoryStream] = field(default_factory=dict)
    queues: dict[tuple[str, str], MemoryQueue] = field(default_factory=dict)
    core: dict[str, list[CoreSubscription]] = field(default_factory=dict)
    replies: dict[str, "asyncio.Future[bytes]"] = field(default_factory=dict)
    n_outages: int = 0
    """How often all connections were lost and made again, other than by the loss of a tail."""

    @property
    def n_reconnects(self) -> int:
        """Outages: a broker that has lost the tail of a stream has been down."""
        return self.n_outages + sum(len(stream.rewinds) for stream in self.streams.values())

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
        for held in (self.streams, self.queues):
            for key in [key for key in held if key[0] == run]:
                del held[key]

    def ensure(self, run: str, max_bytes: dict[str, int]) -> None:
        """Create or update the streams and queues of a run."""
        for row in topology.TOPOLOGY.streams:
            bound = max_bytes.get(row.name, row.max_bytes)
            stream = self.streams.get((run, row.name))
            if stream is None:
                self.streams[run, row.name] = MemoryStream(row, bound, str(self.platform.now_ns()))
            else:
                stream.max_bytes = bound
        for row in topology.TOPOLOGY.consumers:
            if (run, row.name) not in self.queues:
                stream = self.stream(run, row.stream)
                filters = [topology.any_key(run, event) for event in row.events]
                queue = MemoryQueue(row, stream, filters, self.platform, self.faults)
                self.queues[run, row.name] = queue
                stream.queues.append(queue)
                for record in list(stream.records.values()):
                    queue.offer(record)

    def listeners(self, subject: str) -> list[CoreSubscription]:
        """The core subscriptions that a subject reaches."""
        return [each for pattern, held in self.core.items() if matches(pattern, subject) for each in held]

    def inject(self, run: str, stream: str, subject: str, data: bytes) -> int:
        """Store arbitrary bytes, as a foreign publisher would."""
        record = Record(subject, 0, data, self.platform.new_id(), self.platform.now_ns(), None)
        return self.stream(run, stream).append(record, self.platform.monotonic(), None, False)[0]
