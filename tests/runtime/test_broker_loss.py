"""The broker dies and comes back; acknowledgements get lost: nothing is lost, repeated or stuck."""

import asyncio
import contextlib
import uuid
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest

from actors.runtime.broker import Broker, free_port, start_broker
from actors.runtime.bus import Delivery, Incoming, Scope, Stored
from actors.runtime.jetstream import JetStreamBus, connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError, ConflictError, StreamRewoundError
from schemas import commands, events
from tests.runtime.facts import call, ended, requested, until
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


async def test_a_connection_that_broke_is_closed_quietly(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvloop raises a RuntimeError where asyncio's own loop writes into the void."""
    bus = await connect(broker.url, f"t{uuid.uuid4().hex[:10]}", "viewer", SystemPlatform())
    close = bus._wire.client.close

    async def broken() -> None:
        await close()
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    monkeypatch.setattr(bus._wire.client, "close", broken)
    await bus.close()


class Traffic:
    """Writers, a following reader, a durable queue and a core subscription that all go on through a broker restart."""

    def __init__(self, writer: JetStreamBus, reader: JetStreamBus) -> None:
        self.writer = writer
        self.reader = reader
        self.read: list[Stored] = []
        self.worked: Counter[str] = Counter()
        self.heard: list[str] = []
        self.acked: list[int] = []
        self.stop = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin, and wait until it flows."""
        await self.writer.ensure_topology()
        await self.reader.consume("driver", self._work, concurrency=16)
        await self.reader.subscribe(commands.Abort, "e1", self._hear)
        self.tasks = [asyncio.create_task(self._write(f"w{n}")) for n in range(16)]
        self.tasks.append(asyncio.create_task(self._follow()))
        await until(lambda: len(self.read) > 200)

    async def _follow(self) -> None:
        async with aclosing(self.reader.read("plan")) as messages:
            async for message in messages:
                self.read.append(message)

    async def _work(self, delivery: Delivery) -> None:
        assert delivery.stored.event is not None
        self.worked[delivery.stored.event.id] += 1
        await delivery.ack()

    async def _hear(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, commands.Abort)
        self.heard.append(incoming.message.request)

    async def _write(self, key: str) -> None:
        last, n = 0, 0
        while not self.stop.is_set():
            last = await self.writer.append(requested(key, n), key, expected=last)
            self.acked.append(last)
            n += 1


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_everything_goes_on_after_a_broker_restart(tmp_path: Path, how: str) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform, port=free_port())
    writer = await connect(broker.url, "r", "scheduler", platform)
    reader = await connect(broker.url, "r", "driver", platform)
    traffic = Traffic(writer, reader)
    await traffic.start()
    n_before = len(traffic.read)
    broker = await restart(broker, how)
    await until(lambda: len(traffic.read) > n_before + 1000, 30.0)
    traffic.stop.set()
    *writing, following = traffic.tasks
    await asyncio.gather(*writing)
    last = await writer.last_sequence("plan")
    await until(lambda: len(traffic.read) >= last and len(traffic.worked) >= last, 30.0)
    assert sorted(traffic.acked) == list(range(1, last + 1))
    assert [message.sequence for message in traffic.read] == list(range(1, last + 1))
    assert len(traffic.worked) == last
    await writer.publish(commands.Abort(request="after"), key="e1")
    await until(lambda: traffic.heard == ["after"])
    assert writer.gauges()["n_disconnects"] == 1
    assert (writer.n_reconnects, reader.n_reconnects) == (1, 1)
    assert not following.done()
    following.cancel()
    await writer.drain()
    await reader.close()
    await broker.stop()


async def test_a_killed_broker_may_lose_the_tail_of_trace_and_writers_append_it_again(tmp_path: Path) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform, port=free_port())
    bus = await connect(broker.url, "r", "driver", platform)
    await bus.ensure_topology()
    stop = asyncio.Event()
    written: dict[str, int] = {}

    async def write(key: str) -> None:
        last, n = 0, 0
        while not stop.is_set():
            try:
                last = await bus.append(call(key, n), key, expected=last)
                n += 1
                written[key] = n
            except ConflictError:
                there = await bus.read_key("trace", key)
                assert [message.event for message in there] == [call(key, k) for k in range(len(there))]
                last, n = (there[-1].sequence if there else 0), len(there)

    async def follow(to: dict[str, list[int]]) -> None:
        async with aclosing(bus.read("trace")) as messages:
            async for message in messages:
                assert isinstance(message.event, events.ToolRequested)
                to.setdefault(message.key[0], []).append(message.event.turn)

    async def fold() -> None:
        while True:
            with contextlib.suppress(StreamRewoundError):
                folded.clear()
                await follow(folded)

    folded: dict[str, list[int]] = {}
    writing = [asyncio.create_task(write(f"w{n}")) for n in range(8)]
    folding = asyncio.create_task(fold())
    for n_wanted in (200, 600, 1000):
        await until(lambda n=n_wanted: sum(written.values()) > n, 30.0)
        broker = await restart(broker, "kill")
    await until(lambda: sum(written.values()) > 1400, 30.0)
    stop.set()
    await asyncio.gather(*writing)
    await until(lambda: {key: len(turns) for key, turns in folded.items()} == written)
    assert all(turns == list(range(len(turns))) for turns in folded.values())
    folding.cancel()
    await bus.close()
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
            while await witness.last_sequence("trace") == before:  # noqa: ASYNC110 -- what is awaited is in the broker
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


async def test_a_purge_by_sequence_is_not_asked_over_a_later_connection(tmp_path: Path) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform, port=free_port())
    bus = await connect(broker.url, "r", "recorder", platform)
    await bus.ensure_topology()
    for n in range(3):
        await bus.append(call("e1", n), "e1", expected=n)
    as_of = bus.n_reconnects
    broker = await restart(broker, "terminate")
    await until(lambda: bus.n_reconnects > as_of, 10.0)
    with pytest.raises(BusError, match="connection was lost"):
        await bus.purge("trace", up_to_sequence=2, as_of=as_of)
    assert await bus.purge("trace", up_to_sequence=2, as_of=bus.n_reconnects) == 2
    await bus.close()
    await broker.stop()
