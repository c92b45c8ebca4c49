"""The event log of a simulation: every fact as it was stored, purged later or not, without clocks and floats."""

import hashlib

from actors.runtime.memory_stream import MemoryStream, Record
from asearch.agents.packed import unpack_ids
from schemas.codec import decode_event
from schemas.events import Event, TokensGenerated


class Journal:
    """Listens to all streams."""

    def __init__(self, streams: dict[str, MemoryStream]) -> None:
        self.lines: list[str] = []
        self.facts: dict[str, dict[int, Event]] = {name: {} for name in streams}
        """What every stream has held, by sequence; a lost tail is taken out again."""
        self.most: dict[str, int] = dict.fromkeys(streams, 0)
        """The most messages that a stream has held at once."""
        for name, stream in streams.items():
            stream.on_append.append(lambda record, name=name, stream=stream: self._stored(name, stream, record))
            stream.on_lost.append(lambda last, name=name: self._lost(name, last))

    def _stored(self, name: str, stream: MemoryStream, record: Record) -> None:
        event = decode_event(record.data)
        self.facts[name][record.sequence] = event
        self.most[name] = max(self.most[name], len(stream.records))
        ids = unpack_ids(event.columns["ids"].data) if isinstance(event, TokensGenerated) else ""
        self.lines.append(f"{name} {record.sequence} {type(event).__name__} {event.id} {ids}")

    def _lost(self, name: str, last: int) -> None:
        self.lines.append(f"{name} lost what followed {last}")
        for sequence in [each for each in self.facts[name] if each > last]:
            del self.facts[name][sequence]

    @property
    def hash(self) -> str:
        """A name for the whole log."""
        return hashlib.blake2b("\n".join(self.lines).encode(), digest_size=16).hexdigest()
