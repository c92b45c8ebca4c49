"""Load on all six streams at once, with workers on every queue, and what of it the broker has acknowledged."""

import asyncio
import contextlib
from collections import Counter, defaultdict

from actors.runtime.bus import Bus, Delivery
from actors.runtime.jetstream import JetStreamBus, connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError
from schemas import events
from schemas.records import Version, WeightManifest
from schemas.topology import TOPOLOGY
from tests.runtime.facts import call, dropped, requested

STREAMS = tuple(stream.name for stream in TOPOLOGY.streams)
SYNCED = tuple(stream.name for stream in TOPOLOGY.streams if not stream.async_writes)
WRITERS = {"plan": 2, "trace": 8, "outcomes": 2, "policy": 1, "blobs": 1, "dead": 1}
"""Tasks that write to each stream."""


def fact(stream: str, writer: int, n: int) -> tuple[events.Event, tuple[str, ...]]:
    """The n-th fact of a writer, with its key."""
    name = f"{stream}{writer}"
    match stream:
        case "plan":
            return requested(name, n), (name,)
        case "trace":
            return call(name, n, 400), (name,)
        case "outcomes":
            return dropped(f"{name}-{n}"), (f"{name}-{n}",)
        case "policy":
            manifest = WeightManifest(path="x", shards=[])
            version = Version(lineage=1, step=n)
            return events.PolicyPublished(id=f"v{n}", model=name, version=version, parent=None, manifest=manifest), (name,)
        case "blobs":
            blob = events.BlobStored(id=f"{name}-{n}", episode=name, data=b"x" * 30_000, hash=f"h{n}", index=0, n_chunks=1)
            return blob, (name, f"h{n}", "0")
        case _:
            return (
                events.EventRefused(
                    id=f"{name}-{n}", stream="plan", subject="s", sequence=n, actor="driver", reason="r", data=b"x" * 100
                ),
                ("plan", str(n)),
            )


class Load:
    """Writers, workers and readers of one run."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.acked: dict[str, dict[int, str]] = {stream: {} for stream in STREAMS}
        """By stream: the id of the event that was acknowledged under each sequence."""
        self.worked: dict[str, Counter[str]] = defaultdict(Counter)
        self.bus: JetStreamBus
        self.workers: JetStreamBus
        self._writing: list[asyncio.Task[None]] = []

    async def connect(self) -> Bus:
        """Connect writers and workers."""
        self.bus = await connect(self._url, "r", "writer", SystemPlatform())
        self.workers = await connect(self._url, "r", "worker", SystemPlatform())
        return self.bus

    async def begin(self) -> None:
        """Write and work."""
        for queue in ("driver", "tool", "grader"):
            await self.workers.consume(queue, self._worker(queue), concurrency=16)
        self._writing = [asyncio.create_task(self._write(stream, writer)) for stream, n in WRITERS.items() for writer in range(n)]

    def _worker(self, queue: str):
        async def work(delivery: Delivery) -> None:
            if delivery.stored.event is not None:
                self.worked[queue][delivery.stored.event.id] += 1
            await delivery.ack()

        return work

    async def _write(self, stream: str, writer: int) -> None:
        for n in range(1_000_000):
            event, key = fact(stream, writer, n)
            with contextlib.suppress(BusError):
                self.acked[stream][await self.bus.append(event, *key, timeout_s=30.0)] = event.id

    async def end(self) -> None:
        """Stop writing; what is not acknowledged by now does not count."""
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def close(self) -> None:
        """Close both connections."""
        await self.bus.close()
        await self.workers.close()

    def n_acked(self) -> int:
        """Acknowledged appends so far."""
        return sum(len(found) for found in self.acked.values())


async def stored_ids(bus: Bus, stream: str) -> dict[int, str]:
    """The ids that a stream holds, by sequence."""
    found: dict[int, str] = {}
    async for stored in bus.read(stream, follow=False):
        assert stored.event is not None
        found[stored.sequence] = stored.event.id
    return found
