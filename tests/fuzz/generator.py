"""Messages that nobody should have sent, from one seed: kind, subject, bytes. What is an event in its place is left out."""

import math
import random
from collections.abc import Iterator

import msgspec

from actors.runtime.decoding import stored_of
from schemas import events
from schemas.codec import encode
from schemas.records import BlobRef, Reward
from schemas.topology import MAX_PAYLOAD_BYTES, TOPOLOGY, stream_named
from tests.runtime.facts import call, dropped, ended, requested

SAMPLES: tuple[events.Event, ...] = (call("e", 1), dropped("e"), requested("e", 0), ended(1))
KINDS = {
    "random bytes": 20,
    "truncated": 20,
    "wrong tag": 15,
    "bit flips": 20,
    "NaN reward": 5,
    "wrong subject": 15,
    "future type": 10,
    "deep nesting": 4,
    "large": 1,
}
MAX_LARGE = 10 << 20


class Generator:
    """`keys` says which keys are in use in a stream; half of the messages are put under one of these."""

    def __init__(self, run: str, seed: int, n_large: int = 2) -> None:
        self.run, self.chance = run, random.Random(seed)
        self.keys: dict[str, list[str]] = {}
        self.n_valid_by_accident = 0
        self._n_large = n_large

    def messages(self, n: int) -> Iterator[tuple[str, str, bytes]]:
        """`n` messages: stream, subject, bytes."""
        kinds, weights = list(KINDS), list(KINDS.values())
        while n:
            kind = self.chance.choices(kinds, weights)[0]
            if kind == "large":
                kind = "large" if self._n_large else "random bytes"
                self._n_large -= self._n_large > 0
            row = self.chance.choice(TOPOLOGY.facts)
            subject = self._subject(row.stream, f"{row.noun}.{row.verb}")
            data = self._data(kind)
            if stored_of(row.stream, subject, 1, data, 0, None).event is not None:
                self.n_valid_by_accident += 1
                continue
            n -= 1
            yield row.stream, subject, data

    def _subject(self, stream: str, what: str) -> str:
        in_use = self.keys.get(stream)
        if in_use and self.chance.random() < 0.5:
            key = self.chance.choice(in_use)
        else:
            key = ".".join(f"fuzz{self.chance.randrange(1000)}" for _ in range(stream_named(stream).key))
        return f"asearch.{self.run}.{stream}.{what}.{key}"

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
                for _ in range(chance.randrange(1, 6)):
                    whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
                return bytes(whole)
            case "NaN reward":
                return _graded(chance.choice([math.nan, math.inf, -math.inf]))
            case "future type":
                return msgspec.msgpack.encode({**fields, "type": "episode_judged", "panel": [1, 2]})
            case "deep nesting":
                return b"\x82\xa4type\xa9run_ended\xa1z" + chance.choice([b"\x91", b"\x81\xa1a"]) * 5000
            case "large":
                return chance.randbytes(chance.randrange(MAX_PAYLOAD_BYTES - (64 << 10), MAX_LARGE))
            case _:
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
