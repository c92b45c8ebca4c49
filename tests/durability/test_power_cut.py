"""The power fails under load: what the synced streams acknowledged is there, TRACE loses at most its tail, and all go on."""

import asyncio
import os
import random
from contextlib import aclosing

import pytest

from actors.runtime.bus import Delivery
from actors.runtime.jetstream import JetStreamBus, connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import StreamRewoundError
from tests.durability.load import SYNCED, Load, stored_ids
from tests.durability.power import PoweredBroker
from tests.runtime.facts import call, dropped, until

SLOW_SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 13)]


@pytest.mark.parametrize("seed", [0, *SLOW_SEEDS])
async def test_synced_streams_lose_nothing_and_trace_its_tail(powered: PoweredBroker, seed: int, record_property) -> None:
    chance = random.Random(seed)
    load = Load(powered.url)
    await powered.ensure_streams(await load.connect())
    await load.begin()
    await until(lambda: load.n_acked() > chance.randint(300, 3000), 30.0)
    if seed % 3:
        # Some time before the cut the kernel has written back what it held: TRACE has a beginning then.
        await asyncio.to_thread(powered.store.write_back)
        begun = load.n_acked()
        await until(lambda: load.n_acked() > begun + chance.randint(10, 1500), 30.0)
    await powered.cut()
    acked = {stream: dict(found) for stream, found in load.acked.items()}
    await powered.start()
    await until(lambda: load.bus.n_reconnects == 1)
    there = await stored_ids(load.bus, "trace")
    for stream in SYNCED:
        found = await stored_ids(load.bus, stream)
        lost = {sequence for sequence, name in acked[stream].items() if found.get(sequence) != name}
        record_property(f"lost_{stream}", f"{len(lost)} of {len(acked[stream])}")
        assert lost == set(), stream
    kept = [sequence for sequence, name in acked["trace"].items() if there.get(sequence) == name]
    record_property("lost_trace", f"{len(acked['trace']) - len(kept)} of {len(acked['trace'])}")
    assert all(acked["trace"][sequence] == there[sequence] for sequence in kept)
    # No hole: what is kept of before the cut is a beginning.
    assert all(there[sequence] == acked["trace"].get(sequence, there[sequence]) for sequence in range(1, max(kept, default=0)))
    assert seed % 3 == 0 or kept
    await _goes_on(load, powered)
    await load.close()


async def _goes_on(load: Load, powered: PoweredBroker) -> None:
    """Writers and workers go on by themselves; an append in doubt is stored once; every queue works off what is left."""
    begun = {stream: len(found) for stream, found in load.acked.items()}
    await until(lambda: all(len(load.acked[stream]) > n + 5 for stream, n in begun.items()), 10.0)
    await load.end()
    for stream in SYNCED:
        found = await stored_ids(load.bus, stream)
        assert len(set(found.values())) == len(found), f"a retry was stored twice in {stream}"
    wanted = set((await stored_ids(load.bus, "trace")).values())
    await until(lambda: wanted <= set(load.worked["tool"]), 20.0)
    plan = set((await stored_ids(load.bus, "plan")).values())
    await until(lambda: plan <= set(load.worked["driver"]), 20.0)


class Queue:
    """The tool queue: which facts were worked, which deliveries are still held."""

    def __init__(self) -> None:
        self.worked: list[str] = []
        self.held: list[Delivery] = []
        self.acks = lambda _sequence: True

    async def work(self, delivery: Delivery) -> None:
        """Acknowledge or hold."""
        assert delivery.stored.event is not None
        self.worked.append(delivery.stored.event.id)
        if self.acks(delivery.stored.sequence):
            await delivery.ack()
        else:
            self.held.append(delivery)


async def _two_buses(powered: PoweredBroker) -> tuple[JetStreamBus, JetStreamBus]:
    writer = await connect(powered.url, "r", "driver", SystemPlatform())
    worker = await connect(powered.url, "r", "tool", SystemPlatform())
    await powered.ensure_streams(writer)
    return writer, worker


async def _append(bus: JetStreamBus, episode: str, first: int, end: int) -> None:
    for n in range(first, end):
        await bus.append(call(episode, n), episode)


ACKS = {
    "all": lambda _sequence: True,
    "half": lambda sequence: sequence % 2 == 0,
    "none": lambda _sequence: False,
    "the first": lambda sequence: sequence < 40,
}


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("kept", [50, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("acks", [name if name == "half" else pytest.param(name, marks=pytest.mark.slow) for name in ACKS])
async def test_a_queue_past_the_truncated_end_goes_on(powered: PoweredBroker, acks: str, kept: int) -> None:
    """The queue's cursor is on disk, the facts that it has passed are not; new facts take their sequences."""
    writer, worker = await _two_buses(powered)
    await _append(writer, "e", 0, kept)
    await powered.write_back(writer)
    queue = Queue()
    queue.acks = ACKS[acks]
    await worker.consume("tool", queue.work, concurrency=64)
    await _append(writer, "e", kept, kept + 50)
    await until(lambda: len(set(queue.worked)) == kept + 50)
    await _sync_cursor(powered)
    await powered.cut()
    queue.acks = ACKS["all"]
    await powered.start()
    await until(lambda: writer.n_reconnects == 1 and worker.n_reconnects == 1)
    await powered.ensure_streams(writer)
    left = await stored_ids(writer, "trace")
    assert len(left) == kept
    await _append(writer, "f", 0, 60)
    await until(lambda: {f"f-call-{n}" for n in range(60)} <= set(queue.worked), 10.0)
    await until(lambda: set(left.values()) <= set(queue.worked), 10.0)
    # An acknowledgement that comes right behind the last work is not awaited by anybody.
    async with asyncio.timeout(10.0):
        while await _left_over(worker):  # noqa: ASYNC110 -- it is the broker that gets done
            await asyncio.sleep(0.05)
    await writer.close()
    await worker.close()


async def _left_over(worker: JetStreamBus) -> int:
    info = await worker.consumer_info("tool")
    return info.n_ack_pending + info.n_pending


async def _sync_cursor(powered: PoweredBroker) -> None:
    """The state of the queues reaches the disk, as the server's own writes of it do; the stream's facts do not."""

    def sync() -> None:
        for path in powered.store.path.rglob("obs/*/*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    await asyncio.sleep(0.3)
    await asyncio.to_thread(sync)


async def test_an_answer_to_a_delivery_of_before_does_not_settle_another_fact(powered: PoweredBroker) -> None:
    """The fact is lost with the tail, another takes its sequence, and only then the handler of the lost one ends."""
    writer, worker = await _two_buses(powered)
    await _append(writer, "e", 0, 10)
    await powered.write_back(writer)
    queue = Queue()
    queue.acks = ACKS["none"]
    subscription = await worker.consume("tool", queue.work, concurrency=64)
    await _append(writer, "e", 10, 20)
    await until(lambda: len(queue.held) == 20)
    await powered.cut()
    await powered.start()
    await until(lambda: writer.n_reconnects == 1 and worker.n_reconnects == 1)
    await _append(writer, "f", 0, 10)
    await until(lambda: "f-call-9" in queue.worked)
    for delivery in queue.held[:20]:
        await delivery.ack()
    await worker._wire.flush(5.0)
    assert await _left_over(worker) == 20
    await subscription.drain(1.0)
    await writer.close()
    await worker.close()


async def test_a_reader_notices_that_sequences_were_given_anew(powered: PoweredBroker) -> None:
    writer, reader = await _two_buses(powered)
    await _append(writer, "e", 0, 10)
    await powered.write_back(writer)
    await _append(writer, "e", 10, 30)
    async with aclosing(reader.read("trace")) as messages, asyncio.timeout(20.0):
        for _ in range(25):
            await anext(messages)
        # The reader hears nothing more until the lost sequences are taken by others.
        await powered.cut()
        await powered.start()
        await until(lambda: writer.n_reconnects == 1)
        await _append(writer, "f", 0, 40)
        with pytest.raises(StreamRewoundError, match=r"is not the one that was read|lost its tail"):
            while True:
                await anext(messages)
    assert list((await stored_ids(writer, "trace")).values())[10:12] == ["f-call-0", "f-call-1"]
    await writer.close()
    await reader.close()


async def test_a_purge_that_was_not_synced_may_come_undone_but_no_sequence_is_given_twice(powered: PoweredBroker) -> None:
    writer, reader = await _two_buses(powered)
    for n in range(40):
        await writer.append(dropped(f"e{n}"), f"e{n}")
    await writer.purge("outcomes", up_to_sequence=40)
    await powered.cut()
    await powered.start()
    await until(lambda: writer.n_reconnects == 1)
    assert await writer.append(dropped("later"), "later", expected=0) == 41
    assert set(await stored_ids(writer, "outcomes")) <= set(range(1, 42))
    await writer.close()
    await reader.close()
