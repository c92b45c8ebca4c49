"""What each way of writing TRACE costs, and what it loses: `python -m tests.bench.durability_modes`. Takes root (loop device).

Modes: `always` syncs every message before it is acknowledged; `async` acknowledges before the message is written to the file;
`lazy` writes to the file, acknowledges, and syncs every two minutes (the server's default). Ratios are within one round.
"""

import argparse
import asyncio
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from actors.runtime import broker as broker_module
from actors.runtime.broker import free_port, start_broker, sync_store
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError
from schemas import topology
from tests.durability.load import stored_ids
from tests.durability.power import LoopStore, PoweredBroker
from tests.runtime.facts import call, until

MODES = ("always", "async", "lazy")
N_WRITERS = 32
FACT_BYTES = 4000


def _as(mode: str) -> tuple[topology.Topology, str]:
    """The topology with TRACE in this mode, and the server's sync interval."""
    rows = topology.TOPOLOGY.streams
    streams = tuple(dataclasses.replace(row, async_writes=mode == "async") if row.name == "trace" else row for row in rows)
    return dataclasses.replace(topology.TOPOLOGY, streams=streams), '"2m"' if mode == "lazy" else "always"


class Writers:
    """Appends to TRACE by N_WRITERS tasks."""

    def __init__(self) -> None:
        self.acked: dict[int, str] = {}
        self.times_s: list[float] = []

    async def write(self, bus, name: str) -> None:
        """One task, until it is cancelled or the broker is gone."""
        last = 0
        for n in range(1_000_000):
            begun_s = time.perf_counter()
            fact = call(name, n, FACT_BYTES)
            try:
                last = await bus.append(fact, name, expected=last, timeout_s=2.0)
            except BusError:
                return
            self.times_s.append(time.perf_counter() - begun_s)
            self.acked[last] = fact.id


async def one(mode: str, how: str, seconds: float) -> dict[str, float]:
    """Write for some seconds, then cut the power or kill the server; the rate, the latencies and what was lost."""
    folder, platform = Path(tempfile.mkdtemp(prefix="asearch-bench-")), SystemPlatform()
    store = LoopStore(folder / "store", 2 << 30)
    store.make()
    plain = broker_module.configuration
    table, interval = _as(mode)
    try:
        with (
            mock.patch.object(topology, "TOPOLOGY", table),
            mock.patch.object(
                broker_module, "configuration", lambda f, p: plain(f, p).replace("interval: always", f"interval: {interval}")
            ),
        ):
            powered = PoweredBroker(store, await start_broker(store.path / "broker", platform, port=free_port()))
            bus = await connect(powered.url, "bench", "driver", platform)
            await bus.ensure_topology()
            sync_store(powered.broker.folder)
            writers = Writers()
            tasks = [asyncio.create_task(writers.write(bus, f"w{n}")) for n in range(N_WRITERS)]
            await asyncio.sleep(seconds)
            acked, times_s = dict(writers.acked), sorted(writers.times_s)
            if how == "cut":
                await powered.cut()
            else:
                powered.broker.process.kill()
                await powered.broker.process.wait()
            acked = dict(writers.acked)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await powered.start()
            await until(lambda: bus.n_reconnects == 1)
            there = await stored_ids(bus, "trace")
            await bus.close()
            await powered.stop()
        return {
            "per_s": round(len(times_s) / seconds),
            "p50_ms": round(statistics.median(times_s) * 1e3, 2),
            "p99_ms": round(times_s[int(len(times_s) * 0.99)] * 1e3, 2),
            "acked": len(acked),
            "lost": sum(there.get(sequence) != name for sequence, name in acked.items()),
        }
    finally:
        store.remove()
        shutil.rmtree(folder, ignore_errors=True)


async def main() -> None:
    """Rounds of all modes; one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        found = {}
        for mode in MODES:
            for how in ("cut", "kill"):
                found[f"{mode} {how}"] = row = await one(mode, how, arguments.seconds)
                ratio = row["per_s"] / found[f"always {how}"]["per_s"]
                print(f"{number} {mode:6s} {how:4s} {row} x{ratio:.2f} of always", file=sys.stderr)
        rounds.append(found)
    print(json.dumps({"rounds": rounds}))


if __name__ == "__main__":
    asyncio.run(main())
