"""The faults that the in-memory broker can play."""

import asyncio

import pytest

from actors.runtime.bus import Delivery, Incoming
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import Faults, MemoryBroker
from actors.runtime.memory_stream import matches
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError, ConflictError, StreamRewoundError
from schemas import commands
from tests.runtime.facts import call, until


class Scripted(Faults):
    """Faults that a test switches on for a number of times."""

    def __init__(self, **times: int) -> None:
        self.times = times

    def _take(self, name: str) -> bool:
        left = self.times.get(name, 0)
        self.times[name] = left - 1
        return left > 0

    def lose_acknowledgement(self, subject: str) -> bool:
        return self._take("acknowledgement")

    def lose_ack(self, subject: str) -> bool:
        return self._take("ack")

    def deliver_twice(self, subject: str) -> bool:
        return self._take("twice")


async def connected(faults: Faults) -> tuple[MemoryBroker, MemoryBus]:
    platform = SystemPlatform(0)
    broker = MemoryBroker(platform, faults)
    bus = MemoryBus(broker, "r", "driver", platform)
    await bus.ensure_topology()
    return broker, bus


async def test_lost_acknowledgements_are_retried_to_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.runtime.memory.IN_DOUBT_RETRY_S", 0.01)
    _, bus = await connected(Scripted(acknowledgement=2))
    assert await bus.append(call("e1", 0), "e1", expected=0) == 1
    assert await bus.last_sequence("trace") == 1
    assert bus.gauges()["n_append_retries"] == 2
    with pytest.raises(ConflictError):
        await bus.append(call("e1", 1), "e1", expected=0)


@pytest.mark.usefixtures("short_waits")
async def test_lost_acks_and_double_deliveries() -> None:
    broker, bus = await connected(Scripted(ack=1, twice=1))
    seen: list[tuple[str, int]] = []

    async def handle(delivery: Delivery) -> None:
        seen.append((delivery.stored.key[0], delivery.n_delivered))
        await asyncio.sleep(0.01)
        await delivery.ack()

    await bus.consume("tool", handle, concurrency=4)
    await bus.append(call("e0", 0), "e0")
    await until(lambda: len(seen) == 2)
    assert seen == [("e0", 1), ("e0", 2)]
    await until(lambda: not broker.queue("r", "tool").outstanding)
    broker.faults.times["ack"] = 1  # type: ignore[attr-defined]
    await bus.append(call("e1", 0), "e1")
    await until(lambda: len(seen) == 4)
    assert seen[2:] == [("e1", 1), ("e1", 2)]


async def test_a_lost_tail_ends_the_reads_that_saw_it() -> None:
    broker, bus = await connected(Faults())
    for n in range(6):
        await bus.append(call("e1", n), "e1")
    messages = bus.read("trace")
    behind = bus.read("trace")
    assert (await anext(behind)).sequence == 1
    for _ in range(6):
        await anext(messages)
    broker.stream("r", "trace").lose_tail(3)
    for n in range(7, 11):
        await bus.append(call("e1", n), "e1")
    with pytest.raises(StreamRewoundError):
        await anext(messages)
    assert [(await anext(behind)).sequence for _ in range(6)] == [2, 3, 4, 5, 6, 7]
    assert [message.event for message in await bus.read_key("trace", "e1")][3:] == [call("e1", n) for n in range(7, 11)]


def test_filters() -> None:
    assert matches("a.*.c", "a.b.c")
    assert matches("a.>", "a.b.c")
    assert not matches("a.>", "a")
    assert not matches("a.*", "a.b.c")
    assert not matches("a.b.c", "a.b")


async def test_an_outage_loses_what_is_under_way_and_appends_are_made_again() -> None:
    broker, bus = await connected(Faults())
    heard: list[str] = []

    async def hear(incoming: Incoming) -> None:
        assert isinstance(incoming.message, commands.Abort)
        heard.append(incoming.message.request)

    await bus.subscribe(commands.Abort, "e1", hear)
    broker.go_down()
    append = asyncio.create_task(bus.append(call("e1", 0), "e1", expected=0))
    read = asyncio.create_task(bus.last_sequence("trace"))
    await bus.publish(commands.Abort(request="kept in the buffer"), key="e1")
    await asyncio.sleep(0.05)
    assert not append.done() and not read.done() and not bus.is_connected
    assert broker.stream("r", "trace").last_sequence == 0
    broker.come_back()
    assert await append == 1
    await read
    assert bus.n_reconnects == 1
    await until(lambda: heard == ["kept in the buffer"])


async def test_an_append_that_the_broker_took_before_it_died_is_stored_once() -> None:
    broker, bus = await connected(Scripted(acknowledgement=1))
    append = asyncio.create_task(bus.append(call("e1", 0), "e1", expected=0))
    await until(lambda: broker.stream("r", "trace").last_sequence == 1)
    assert not append.done()
    broker.go_down()
    broker.come_back()
    async with asyncio.timeout(2.0):
        assert await append == 1
    assert await bus.last_sequence("trace") == 1


async def test_after_a_restart_ids_of_deleted_messages_are_forgotten() -> None:
    broker, bus = await connected(Faults())
    assert await bus.append(call("e1", 0), "e1") == 1
    assert await bus.append(call("e1", 1), "e1") == 2
    await bus.purge("trace", up_to_sequence=1)
    assert await bus.append(call("e1", 0), "e1") == 1
    broker.go_down()
    broker.come_back()
    assert await bus.append(call("e1", 0), "e1") == 3
    assert await bus.append(call("e1", 1), "e1") == 2


async def test_a_delivery_of_before_an_outage_is_not_answered_after_it() -> None:
    broker, bus = await connected(Faults())
    seen: list[tuple[str, int]] = []
    held: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        assert delivery.stored.event is not None
        seen.append((delivery.stored.event.id, delivery.n_delivered))
        held.append(delivery)

    await bus.consume("tool", handle, concurrency=4)
    await bus.append(call("e1", 0), "e1")
    await until(lambda: len(seen) == 1)
    broker.go_down()
    broker.stream("r", "trace").lose_tail(1)
    broker.come_back()
    await until(lambda: bus.is_connected)
    assert await bus.append(call("e2", 0), "e2") == 1
    await until(lambda: len(seen) == 2)
    await held[0].ack()
    await asyncio.sleep(0.05)
    assert list(broker.queue("r", "tool").outstanding) == [1]
    await held[1].ack()
    await until(lambda: not broker.queue("r", "tool").outstanding)


async def test_whoever_vanishes_is_heard_no_more_but_what_it_sent_arrives() -> None:
    broker, bus = await connected(Faults())
    other = MemoryBus(broker, "r", "driver", bus.platform)
    append = asyncio.create_task(bus.append(call("e1", 0), "e1", expected=0))
    await asyncio.sleep(0)
    bus.cut()
    append.cancel()
    await until(lambda: broker.stream("r", "trace").last_sequence == 1)
    assert await other.last_sequence("trace") == 1
    with pytest.raises(BusError):
        await bus.last_sequence("trace")
