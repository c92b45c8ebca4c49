"""Messages that nobody should have sent, from one seed: stream, subject, bytes, and whether they are an event in their place."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from actors.runtime.decoding import stored_of
from schemas import events
from schemas.codec import encode
from schemas.records import BlobRef, Reward, ToolResult
from schemas.topology import MAX_PAYLOAD_BYTES, TOPOLOGY, Fact, fact_of, subject
from tests.runtime.facts import call, dropped, ended, requested

SAMPLES: tuple[events.Event, ...] = (call("e", 1), dropped("e"), requested("e", 0), ended(1))
KINDS = {
    "random bytes": 20,
    "truncated": 20,
    "wrong tag": 15,
    "bit flips": 20,
    "NaN reward": 5,
    "wrong subject": 15,
    "strange subject": 3,
    "future type": 10,
    "future field": 2,
    "few flips in place": 5,
    "deep nesting": 4,
}
LARGE_BYTES = (MAX_PAYLOAD_BYTES - (64 << 10), MAX_PAYLOAD_BYTES + (32 << 10), 9 << 20, 10 << 20)
"""The first is taken; the second the stream refuses, the others the client."""


class Noise(NamedTuple):
    """One message."""

    stream: str
    subject: str
    data: bytes
    is_event: bool


class Generator:
    """`keys` says which keys are in use in a stream; half of the messages are put under one of these.

    Those that are events in their place are of episodes that nobody asked for: an event under a key in use would be no noise,
    but a second writer.
    """

    def __init__(self, run: str, seed: int) -> None:
        self.run, self.chance = run, random.Random(seed)
        self.keys: dict[str, list[str]] = {}

    def messages(self, n: int) -> Iterator[Noise]:
        """`n` messages, evenly over the streams; the large ones come first."""
        for size in LARGE_BYTES[:n]:
            row = self.chance.choice(TOPOLOGY.facts)
            yield Noise(row.stream, self._subject(row), self.chance.randbytes(size), False)
        kinds, weights = list(KINDS), list(KINDS.values())
        for _ in range(n - len(LARGE_BYTES)):
            kind = self.chance.choices(kinds, weights)[0]
            if kind in ("future field", "few flips in place"):
                yield self._in_place(kind)
                continue
            noise = self._out_of_place(kind)
            while noise.is_event:
                noise = self._out_of_place(kind)
            yield noise

    def _out_of_place(self, kind: str) -> Noise:
        stream = self.chance.choice(TOPOLOGY.streams).name
        row = self.chance.choice([row for row in TOPOLOGY.facts if row.stream == stream])
        subject = self._subject(row)
        if kind == "strange subject":
            subject = self.chance.choice((f"{subject}.more", subject.rpartition(".")[0], f"asearch.{self.run}.{stream}.nothing"))
        return self._noise(stream, subject, self._data(kind))

    def _in_place(self, kind: str) -> Noise:
        """An event of an episode that nobody asked for, with a field that this build does not know, or with flipped bits."""
        event = self._harmless(f"fuzz{self.chance.randrange(1000)}")
        key = (event.episode, event.hash, str(event.index)) if isinstance(event, events.BlobStored) else (event.episode,)
        data = bytearray(encode(event))
        if kind == "future field":
            data = bytearray(msgspec.msgpack.encode({**msgspec.msgpack.decode(data), "mood": ["calm", 1]}))
        else:
            self._flip(data, self.chance.randrange(1, 3))
        return self._noise(fact_of(type(event)).stream, subject(self.run, type(event), *key), bytes(data))

    def _harmless(self, episode: str) -> events.ToolReturned | events.DeadlineNeared | events.BlobStored:
        name = f"{episode}-{self.chance.randrange(1 << 30)}"
        result = ToolResult(message=name)
        return self.chance.choice(
            (
                events.ToolReturned(id=name, episode=episode, call="c", turn=1, result=result),
                events.DeadlineNeared(id=name, episode=episode),
                events.BlobStored(id=name, episode=episode, hash=name, index=0, n_chunks=1, data=name.encode()),
            )
        )

    def _noise(self, stream: str, subject: str, data: bytes) -> Noise:
        return Noise(stream, subject, data, stored_of(stream, subject, 1, data, 0, None).event is not None)

    def _subject(self, row: Fact) -> str:
        in_use = self.keys.get(row.stream)
        if in_use and self.chance.random() < 0.5:
            key = self.chance.choice(in_use)
        else:
            key = ".".join(f"fuzz{self.chance.randrange(1000)}" for _ in row.keyed_by)
        return f"asearch.{self.run}.{row.stream}.{row.noun}.{row.verb}.{key}"

    def _flip(self, data: bytearray, n: int) -> None:
        for _ in range(n):
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)

    def _data(self, kind: str) -> bytes:
        chance, whole = self.chance, bytearray(encode(self.chance.choice(SAMPLES)))
        fields = msgspec.msgpack.decode(bytes(whole))
        match kind:
            case "random bytes":
                return chance.randbytes(chance.randrange(200))
            case "truncated":
                return bytes(whole[: chance.randrange(len(whole))])
            case "wrong tag":
                return msgspec.msgpack.encode({**fields, "type": chance.choice([7, None, "episode", "step_trained", [1]])})
            case "bit flips":
                self._flip(whole, chance.randrange(1, 6))
            case "NaN reward":
                return _graded(chance.choice([math.nan, math.inf, -math.inf]))
            case "future type":
                return msgspec.msgpack.encode({**fields, "type": "episode_judged", "panel": [1, 2]})
            case "deep nesting":
                return b"\x82\xa4type\xa9run_ended\xa1z" + chance.choice([b"\x91", b"\x81\xa1a"]) * 5000
            case _:
                pass
        return bytes(whole)


def _graded(value: float) -> bytes:
    ref = BlobRef(episode="e", hash="h", size_bytes=1, n_chunks=1)
    shared = {
        "episode": "e",
        "group": "g",
        "member": 0,
        "members": 1,
        "slot": 0,
        "purpose": "train",
        "task": "t",
        "trajectory": ref,
    }
    numbers = dict.fromkeys(("n_turns", "n_tokens_generated", "n_searches", "n_reads"), 1)
    return encode(events.EpisodeGraded(id="x", reward=Reward(value=value), status="answered", answer="a", **shared, **numbers))  # type: ignore[arg-type]
