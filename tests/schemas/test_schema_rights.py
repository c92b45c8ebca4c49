"""The generated permissions on a real server: every actor can do its work, and nothing beyond it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
from schema_samples import sample

from actors.runtime.broker import answers, configuration, free_port, server_path
from actors.runtime.bus import Bus, Delivery
from actors.runtime.jetstream import JetStreamBus
from actors.runtime.platform import SystemPlatform
from actors.runtime.wire import Wire
from asearch.errors import BusError
from schemas import commands, events, topology
from schemas.permissions import OPERATOR, inbox, permissions
from schemas.topology import TOPOLOGY

RUN = "r"


class Server:
    """A broker that knows one user per kind of actor."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.buses: list[JetStreamBus] = []

    async def bus(self, actor: str) -> JetStreamBus:
        wire = Wire(f"nats://{actor}:secret@127.0.0.1:{self.port}", f"{RUN}/{actor}", SystemPlatform(0))
        wire.prefix = f"{inbox(actor)}.{wire.platform.new_id()[:22]}"
        bus = JetStreamBus(wire, RUN, actor)
        await bus.open(10.0)
        self.buses.append(bus)
        return bus


@pytest_asyncio.fixture(loop_scope="function")
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    port = free_port()
    users = [{"user": name, "password": "secret", "permissions": block} for name, block in permissions(RUN).items()]
    config = tmp_path / "nats.conf"
    config.write_text(configuration(tmp_path, port, users))
    with (tmp_path / "nats.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(str(server_path()), "-c", str(config), stdout=log, stderr=log)
    try:
        async with asyncio.timeout(15.0):
            while not await answers(port):
                assert process.returncode is None, (tmp_path / "nats.log").read_text()
                await asyncio.sleep(0.05)
        held = Server(port)
        operator = await held.bus(OPERATOR)
        await operator.ensure_topology()
        yield held
        for bus in held.buses:
            await bus.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def key_of(event: type[events.Event]) -> list[str]:
    return [f"k{i}" for i in range(topology.stream_named(topology.fact_of(event).stream).key)]


async def refused(bus: JetStreamBus, subject: str) -> bool:
    """Whether the server refuses a publication: its error follows on the connection."""
    before = bus._wire.counters["n_broker_errors"]
    await bus._wire.send(subject, b"{}")
    await bus._wire.flush(5.0)
    await asyncio.sleep(0.01)
    return bus._wire.counters["n_broker_errors"] > before


async def read_all(bus: Bus, stream: str) -> int:
    async with asyncio.timeout(10.0), aclosing(bus.read(stream, follow=False)) as reader:
        return len([stored async for stored in reader])


async def test_everybody_can_append_its_facts_and_read_what_it_may(server: Server) -> None:
    for actor in TOPOLOGY.actors:
        bus = await server.bus(actor)
        for fact in TOPOLOGY.facts:
            if actor in fact.writers:
                event = sample(fact.event)
                assert isinstance(event, events.Event)
                await bus.append(event, *(f"{actor}-{each}" for each in key_of(fact.event)), expected=None, timeout_s=5.0)
    for row in TOPOLOGY.readers:
        bus = next(bus for bus in server.buses if bus.actor == row.actor)
        if row.in_order:
            assert await read_all(bus, row.stream) > 0
        elif not row.only:
            await bus.read_key(row.stream, *["driver-k0", "driver-k1", "driver-k2"][: topology.stream_named(row.stream).key])
        for event in row.only:
            assert await bus.get_last(event, *(f"{topology.fact_of(event).writers[0]}-{each}" for each in key_of(event)))
    recorder = next(bus for bus in server.buses if bus.actor == "recorder")
    assert await recorder.purge("trace") > 0
    assert sum(bus._wire.counters["n_broker_errors"] for bus in server.buses) == 0


async def test_queues_core_messages_and_replies(server: Server) -> None:
    driver, tool, engine = await server.bus("driver"), await server.bus("tool"), await server.bus("engine")
    done = asyncio.Event()

    async def on_reply(incoming: object) -> None:
        await incoming.reply(commands.Received())  # type: ignore[attr-defined]

    async def on_call(delivery: Delivery) -> None:
        event = delivery.stored.event
        assert isinstance(event, events.ToolRequested)
        reply = commands.ToolReply(episode=event.episode, call=event.call, result=events.ToolResult())
        answer = await tool.request(reply, subject=event.reply_to, timeout_s=5.0)
        assert isinstance(answer, commands.Received)
        await delivery.ack()
        done.set()

    await driver.subscribe(commands.ToolReply, "d0", on_reply)
    await engine.subscribe(commands.Generate, "e0", on_reply)
    await tool.consume("tool", on_call, concurrency=2)
    await driver.append(
        events.ToolRequested(
            id="c0",
            episode="e",
            call="c0",
            turn=0,
            tool="search",
            argument="q",
            task="t",
            member=0,
            reply_to=driver.core_subject(commands.ToolReply, "d0"),
        ),
        "e",
        expected=0,
    )
    async with asyncio.timeout(10.0):
        await done.wait()
        while (await tool.consumer_info("tool")).n_ack_pending:  # noqa: ASYNC110 -- the broker tells nobody
            await asyncio.sleep(0.02)
    assert sum(bus._wire.counters["n_broker_errors"] for bus in server.buses) == 0


async def test_what_is_not_allowed_is_refused(server: Server) -> None:
    buses = {actor: await server.bus(actor) for actor in TOPOLOGY.actors}
    for actor, bus in buses.items():
        strangers = [fact for fact in TOPOLOGY.facts if actor not in fact.writers]
        for fact in strangers:
            assert await refused(bus, topology.subject(RUN, fact.event, *key_of(fact.event))), (actor, fact)
        assert await refused(bus, f"$JS.API.STREAM.DELETE.{topology.broker_stream(RUN, 'policy')}")
        assert await refused(bus, f"$JS.API.CONSUMER.DELETE.{topology.broker_stream(RUN, 'plan')}.driver")
    for actor in ("driver", "tool", "engine"):
        with pytest.raises(BusError):
            await asyncio.wait_for(buses[actor]._api.ask("$JS.API.DIRECT.GET.asearch-r-plan", {"seq": 1}, total_s=0.3), 10.0)
    operator = next(bus for bus in server.buses if bus.actor == OPERATOR)
    for stream in TOPOLOGY.streams:
        assert (await operator.stream_info(stream.name)).n_messages == 0


async def test_nobody_listens_to_facts_or_to_the_inboxes_of_others(server: Server) -> None:
    for actor in TOPOLOGY.actors:
        bus = await server.bus(actor)
        other = "grader" if actor != "grader" else "tool"
        for subject in (f"asearch.{RUN}.plan.>", f"{inbox(other)}.>", "_INBOX.>", "$JS.API.>", ">"):
            before = bus._wire.counters["n_broker_errors"]
            await bus._wire.listen(subject, lambda packet: None)
            await bus._wire.flush(5.0)
            await asyncio.sleep(0.02)
            assert bus._wire.counters["n_broker_errors"] > before, (actor, subject)
