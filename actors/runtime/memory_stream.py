"""A stream of the in-memory broker: messages by sequence, compare-and-set, recent ids, the loss of a tail."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from actors.runtime.bus import DUPLICATE_WINDOW_S
from actors.runtime.waking import Signal
from asearch.errors import ConflictError, StreamFullError
from schemas import topology

OVERHEAD_BYTES = 64
"""What a stored message costs beyond its subject and bytes; about what the real broker takes."""


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


@lru_cache(maxsize=1 << 16)
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
    """A stream. `on_append` and `on_lost` are called for every new message, and with the last sequence after a lost tail."""

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
        self.on_append: list[Callable[[Record], None]] = []
        self.on_lost: list[Callable[[int], None]] = []
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
        for told in self.on_append:
            told(record)
        self.wake()
        return record.sequence, False

    def wake(self) -> None:
        """Let every reader look again."""
        for signal in self.readers:
            signal.set()

    def last_of(self, key: str) -> int:
        """The last sequence under a key, 0 if there is none."""
        sequences = self.by_key.get(key)
        return sequences[-1] if sequences else 0

    @property
    def first_sequence(self) -> int:
        """The first sequence that is stored; the next one of an empty stream."""
        return next(iter(self.records), self.last_sequence + 1)

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
        for told in self.on_lost:
            told(self.last_sequence)
        self.wake()

    def recover(self) -> None:
        """What a restart does: ids of messages that are not stored any more are forgotten, so their repeat is a new message."""
        self._ids = {name: known for name, known in self._ids.items() if known[0] in self.records}
