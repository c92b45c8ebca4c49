"""How fast the bus is on this machine: messages a second, and CPU of client and broker per message.

Run it as `python -m tests.bench.bus_throughput`; the last line is JSON.
"""

import asyncio
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import uvloop

from actors.runtime.broker import Broker, start_broker
from actors.runtime.bus import Delivery, Incoming
from actors.runtime.jetstream import JetStreamBus, connect
from actors.runtime.platform import SystemPlatform
from schemas import commands, events
from schemas.records import Task
from tests.runtime.facts import call

ARGUMENT_BYTES = 900
N_SERIAL = 3000
N_PARALLEL = 64
N_EACH = 300


def fact(episode: str, n: int) -> events.ToolRequested:
    """About 1 KB on the wire."""
    return call(episode, n, ARGUMENT_BYTES)


def plan(episode: str, n: int) -> events.EpisodeRequested:
    """About 1 KB on the wire, for a stream that is synced at every write."""
    return events.EpisodeRequested(
        id=f"{episode}-{n}",
        episode=episode,
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task=Task(id="task", question="q" * ARGUMENT_BYTES),
        seed=0,
        progress=0,
        recipe_hash="h",
    )


class Meter:
    """Measures work and keeps the figures."""

    def __init__(self, broker: Broker) -> None:
        self._server = psutil.Process(broker.process.pid)
        self.figures: dict[str, dict[str, float]] = {}

    def _cpu_s(self) -> tuple[float, float]:
        own, server = resource.getrusage(resource.RUSAGE_SELF), self._server.cpu_times()
        return own.ru_utime + own.ru_stime, server.user + server.system

    async def measure(self, name: str, n: int, work: Callable[[], Awaitable[object]]) -> None:
        """Run the work, which handles `n` messages."""
        own, server = self._cpu_s()
        began = time.perf_counter()
        await work()
        wall_s = time.perf_counter() - began
        own, server = (after - before for after, before in zip(self._cpu_s(), (own, server), strict=True))
        row = {
            "per_s": round(n / wall_s),
            "client_us": round(own / n * 1e6, 1),
            "broker_us": round(server / n * 1e6, 1),
        }
        self.figures[name] = row
        print(f"{name:34s} {row['per_s']:8.0f}/s   client {row['client_us']:6.1f} us   broker {row['broker_us']:6.1f} us")


async def appends(bus: JetStreamBus, meter: Meter) -> None:
    """Conditional appends by one task and by many, to the stream with and without a sync at every write."""

    async def write(make: Callable[[str, int], events.Event], key: str, n: int) -> None:
        last = 0
        for index in range(n):
            last = await bus.append(make(key, index), key, expected=last)

    async def parallel(make: Callable[[str, int], events.Event]) -> None:
        await asyncio.gather(*(write(make, f"w{worker}", N_EACH) for worker in range(N_PARALLEL)))

    await write(fact, "warm", 500)
    await meter.measure("append trace, 1 task", N_SERIAL, lambda: write(fact, "one", N_SERIAL))
    await meter.measure("append trace, 64 tasks", N_PARALLEL * N_EACH, lambda: parallel(fact))
    await meter.measure("append plan (synced), 1 task", N_SERIAL, lambda: write(plan, "one", N_SERIAL))
    await meter.measure("append plan (synced), 64 tasks", N_PARALLEL * N_EACH, lambda: parallel(plan))


async def deliveries(bus: JetStreamBus, meter: Meter) -> None:
    """Reading a stream and working off a queue."""
    total = await bus.last_sequence("trace")

    async def read() -> None:
        seen = 0
        async for _ in bus.read("trace", follow=False):
            seen += 1
        if seen != total:
            raise RuntimeError(f"read {seen} of {total}")

    async def consume() -> None:
        done, seen = asyncio.Event(), 0

        async def handle(delivery: Delivery) -> None:
            nonlocal seen
            await delivery.ack()
            seen += 1
            if seen == total:
                done.set()

        queue = await bus.consume("tool", handle, concurrency=256)
        await done.wait()
        await queue.drain(10.0)

    await meter.measure("read", total, read)
    await meter.measure("consume and ack, 256 at once", total, consume)


async def requests(bus: JetStreamBus, other: JetStreamBus, meter: Meter) -> None:
    """Core request and reply, and publishing without a reply."""
    heard, done = 0, asyncio.Event()

    async def answer(incoming: Incoming) -> None:
        nonlocal heard
        if incoming.wants_reply:
            await incoming.reply(commands.Received())
            return
        heard += 1
        if heard == 10_000:
            done.set()

    await other.subscribe(commands.Abort, "bench", answer)
    await asyncio.sleep(0.1)
    times: list[float] = []

    async def ask() -> None:
        for _ in range(2000):
            began = time.perf_counter()
            await bus.request(commands.Abort(request="x"), key="bench", timeout_s=5.0)
            times.append(time.perf_counter() - began)

    async def tell() -> None:
        for n in range(10_000):
            await bus.publish(commands.Abort(request="x" * 500), key="bench")
            if n % 500 == 499:
                await asyncio.sleep(0)
        await done.wait()

    await meter.measure("core request and reply", 2000, ask)
    meter.figures["core request and reply"]["p50_us"] = round(sorted(times)[1000] * 1e6)
    await meter.measure("core publish to a handler", 10_000, tell)


async def main() -> None:
    """Everything on a broker of its own."""
    folder = Path(tempfile.mkdtemp(prefix="asearch-bench-"))
    broker = await start_broker(folder, SystemPlatform())
    try:
        bus = await connect(broker.url, "bench", "driver", SystemPlatform())
        other = await connect(broker.url, "bench", "tool", SystemPlatform())
        await bus.ensure_topology()
        meter = Meter(broker)
        await appends(bus, meter)
        await deliveries(bus, meter)
        await requests(bus, other, meter)
        await bus.close()
        await other.close()
        print(json.dumps(meter.figures))
    finally:
        await broker.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    uvloop.run(main())
