"""The broker dies and comes back; acknowledgements get lost: nothing is lost, repeated or stuck."""

import asyncio
import uuid
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest

from actors.runtime.broker import Broker, free_port, start_broker
from actors.runtime.bus import Delivery, Incoming, Scope, Stored
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError, ConflictError, StreamRewoundError
from schemas import commands
from tests.runtime.facts import call, ended, until
from tests.runtime.proxy import Proxy

DOWN_S = 0.4


async def restart(broker: Broker, how: str) -> Broker:
    """End the server and start it again on the same port and folder."""
    if how == "kill":
        broker.process.kill()
        await broker.process.wait()
    else:
        await broker.stop()
    await asyncio.sleep(DOWN_S)
    return await start_broker(broker.folder, SystemPlatform(), port=broker.port)


@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_everything_goes_on_after_a_broker_restart(tmp_path: Path, how: str) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform, port=free_port())
    writer = await connect(broker.url, "r", "driver", platform)
    reader = await connect(broker.url, "r", "viewer", platform)
    await writer.ensure_topology()
    read: list[Stored] = []
    worked: Counter[str] = Counter()
    heard: list[str] = []
    acked: dict[str, list[int]] = {}
    stop = asyncio.Event()

    async def follow() -> None:
        async with aclosing(reader.read("trace")) as messages:
            async for message in messages:
                read.append(message)

    async def work(delivery: Delivery) -> None:
        assert delivery.stored.event is not None
        worked[delivery.stored.event.id] += 1
        await delivery.ack()

    async def hear(incoming: Incoming) -> None:
        assert isinstance(incoming.message, commands.Abort)
        heard.append(incoming.message.request)

    async def write(key: str) -> None:
        last = 0
        while not stop.is_set():
            last = await writer.append(call(key, last, size=500), key, expected=last)
            acked.setdefault(key, []).append(last)

    following = asyncio.create_task(follow())
    await reader.consume("tool", work, concurrency=16)
    await reader.subscribe(commands.Abort, "e1", hear)
    writing = [asyncio.create_task(write(f"w{n}")) for n in range(16)]
    await until(lambda: len(read) > 200)
    n_before = len(read)
    broker = await restart(broker, how)
    await until(lambda: len(read) > n_before + 2000, 20.0)
    stop.set()
    await asyncio.gather(*writing)
    last = await writer.last_sequence("trace")
    await until(lambda: len(read) >= last and len(worked) >= last)
    sequences = sorted(sum(acked.values(), []))
    assert sequences == list(range(1, last + 1))
    assert [message.sequence for message in read] == sequences
    assert len(worked) == last
    await writer.publish(commands.Abort(request="after"), key="e1")
    await until(lambda: heard == ["after"])
    assert writer.gauges()["n_disconnects"] == 1
    assert not following.done()
    following.cancel()
    await writer.drain()
    await reader.close()
    await broker.stop()


async def test_an_append_whose_acknowledgement_was_lost_is_not_a_conflict(broker: Broker) -> None:
    platform = SystemPlatform()
    run = f"t{uuid.uuid4().hex[:8]}"
    async with Proxy(broker.port) as proxy:
        bus = await connect(f"nats://127.0.0.1:{proxy.port}", run, "driver", platform)
        witness = await connect(broker.url, run, "viewer", platform)
        await witness.ensure_topology()
        for work in (
            lambda: bus.append(call("e1", 0), "e1", expected=0),
            lambda: bus.append(call("e1", 1), "e1"),
            lambda: bus.append(call("e1", 2), "e1", expected=2),
        ):
            before = await witness.last_sequence("trace")
            proxy.deaf = True
            append = asyncio.create_task(work())
            while await witness.last_sequence("trace") == before:
                await asyncio.sleep(0.01)
            proxy.deaf = False
            proxy.cut()
            assert await append == before + 1
        assert await bus.append(ended(0), "r", expected=0, scope=Scope.STREAM) == 1
        assert bus.gauges()["n_append_retries"] >= 3
        assert (await witness.stream_info("trace")).n_messages == 3
        # Somebody else takes the place while this writer is in doubt.
        proxy.deaf = True
        proxy.cut()
        loser = asyncio.create_task(bus.append(call("e1", 3), "e1", expected=3))
        await asyncio.sleep(0.05)
        await witness.append(call("e1", 4), "e1", expected=3)
        proxy.deaf = False
        proxy.cut()
        with pytest.raises(ConflictError):
            await loser
        await bus.close()
        await witness.close()


async def test_a_lost_message_of_a_read_is_read_again(broker: Broker) -> None:
    platform = SystemPlatform()
    run = f"t{uuid.uuid4().hex[:8]}"
    async with Proxy(broker.port) as proxy:
        bus = await connect(f"nats://127.0.0.1:{proxy.port}", run, "viewer", platform)
        writer = await connect(broker.url, run, "driver", platform)
        await writer.ensure_topology()
        read: list[int] = []
        worked: set[int] = set()

        async def follow() -> None:
            async with aclosing(bus.read("trace")) as messages:
                async for message in messages:
                    read.append(message.sequence)

        async def work(delivery: Delivery) -> None:
            worked.add(delivery.stored.sequence)
            await delivery.ack()

        following = asyncio.create_task(follow())
        for n in range(10):
            await writer.append(call("e1", n), "e1")
        await until(lambda: len(read) == 10)
        await bus.consume("tool", work, concurrency=4)
        await until(lambda: len(worked) == 10)
        proxy.deaf = True
        for n in range(10, 20):
            await writer.append(call("e1", n), "e1")
        await asyncio.sleep(0.2)
        proxy.deaf = False
        for n in range(20, 30):
            await writer.append(call("e1", n), "e1")
        await until(lambda: len(read) == 30)
        assert read == list(range(1, 31))
        # What was delivered into the void is the broker's to deliver again; the queue itself goes on at once.
        await until(lambda: worked >= set(range(21, 31)))
        following.cancel()
        await bus.close()
        await writer.close()


async def test_a_broker_that_stays_away_is_named_and_the_deadline_kept(tmp_path: Path) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform)
    bus = await connect(broker.url, "r", "driver", platform)
    await bus.ensure_topology()
    broker.process.kill()
    await broker.process.wait()
    began = platform.monotonic()
    with pytest.raises(BusError, match="not known to be stored"):
        await bus.append(call("e1", 0), "e1", timeout_s=0.5)
    assert platform.monotonic() - began < 2.0
    with pytest.raises(BusError):
        await bus.request(commands.Abort(request="a"), key="e1", timeout_s=0.3)
    await bus.close()
    with pytest.raises(BusError, match="is the broker up"):
        await connect(broker.url, "r", "driver", platform, timeout_s=0.5)


async def test_a_stream_that_was_made_anew_is_not_read_on(tmp_path: Path) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform)
    bus = await connect(broker.url, "r", "driver", platform)
    await bus.ensure_topology()
    for n in range(3):
        await bus.append(call("e1", n), "e1")
    with pytest.raises(StreamRewoundError, match="ends at 3"):
        await anext(bus.read("trace", start_sequence=9))
    messages = bus.read("trace")
    for _ in range(3):
        await anext(messages)
    await bus._api.call(f"STREAM.DELETE.{bus._api.stream('trace')}", None)
    await bus.ensure_topology()
    await bus.append(call("e1", 7), "e1")
    with pytest.raises(StreamRewoundError, match="made anew"):
        async with asyncio.timeout(10):
            await anext(messages)
    await bus.close()
    await broker.stop()
