"""What the checks of a delivered message cost: `stored_of` against bare msgpack decoding, microseconds per message.

python tests/bench/decode_cost.py [--json]
"""

import argparse
import json
import struct
import time

import msgspec

from actors.runtime.bus import Stored
from actors.runtime.decoding import stored_of
from schemas.codec import encode
from schemas.events import AnyEvent, BlobStored, EpisodeDropped, Event, TokensGenerated, ToolRequested
from schemas.records import Column, Version, VersionRun
from schemas.topology import fact_of, subject

ROUNDS = 200
PER_ROUND_S = 0.002


def tokens(n: int) -> TokensGenerated:
    """`n` tokens of one generation."""
    columns = {
        "ids": Column(dtype="u4", shape=(n,), data=struct.pack(f"<{n}I", *range(n))),
        "logprobs": Column(dtype="f4", shape=(n,), data=bytes(4 * n)),
    }
    runs = [VersionRun(version=Version(lineage=1, step=3), start=0, end=n)]
    held = {"episode": "t-3-0-1", "attempt": 0, "driver": "driver-0"}
    return TokensGenerated(
        id="t-3-0-1-0-7-tokens", at_ns=1, request="g", turn=2, offset=0, columns=columns, versions=runs, **held
    )


def samples() -> dict[str, Event]:
    """Facts of the busiest kinds."""
    held = {"episode": "t-3-0-1", "attempt": 0, "driver": "driver-0"}
    call = {
        "call": "t-3-0-1:2",
        "turn": 2,
        "tool": "search",
        "argument": "x" * 60,
        "task": "task",
        "member": 1,
        "reply_to": "r" * 40,
    }
    ends = {"group": "t-3-0", "member": 1, "members": 3, "slot": 3, "purpose": "train", "task": "task", "reason": "deadline"}
    return {
        "64 tokens": tokens(64),
        "2000 tokens (16 KB)": tokens(2000),
        "tool call": ToolRequested(id="t-3-0-1-0-8-tool", at_ns=1, **held, **call),
        "outcome": EpisodeDropped(id="outcome-t-3-0-1", at_ns=1, episode="t-3-0-1", **ends),
        "chunk of 64 KiB": BlobStored(id="b", episode="t-3-0-1", hash="f" * 32, index=0, n_chunks=1, data=bytes(1 << 16)),
    }


def cost_us(call, n: int) -> float:  # type: ignore[no-untyped-def]
    begun = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - begun) / n * 1e6


def measure(event: Event) -> tuple[float, float]:
    """Bare and checked, each the best of interleaved rounds: others have the machine too."""
    data, stream = encode(event), fact_of(type(event)).stream
    key = (event.episode, event.hash, "0") if isinstance(event, BlobStored) else (event.episode,)  # type: ignore[attr-defined]
    where, decode = subject("run-1", type(event), *key), msgspec.msgpack.Decoder(AnyEvent).decode

    def bare() -> Stored:
        return Stored(stream, where, 1, data, decode(data), None, 0, None)

    def checked() -> Stored:
        return stored_of(stream, where, 1, data, 0, None)

    assert checked() == bare()
    n = max(10, int(PER_ROUND_S * 1e6 / cost_us(checked, 100)))
    rounds = [(cost_us(bare, n), cost_us(checked, n)) for _ in range(ROUNDS)]
    return min(each[0] for each in rounds), min(each[1] for each in rounds)


def main() -> None:
    """Print a table, or one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows = {name: measure(event) for name, event in samples().items()}
    if as_json:
        told = {name: {"bare_us": bare, "checked_us": checked, "speed": bare / checked} for name, (bare, checked) in rows.items()}
        print(json.dumps({"decode_cost": told}))
        return
    for name, (bare, checked) in rows.items():
        print(f"{name:<22} bare {bare:6.2f} us, checked {checked:6.2f} us, {bare / checked:5.0%} of the bare speed")


if __name__ == "__main__":
    main()
