"""What every actor does: its queue, its dead letters, its heartbeat, its end."""

import asyncio

import pytest

from actors.runtime import actor as base
from actors.runtime.actor import Actor, Context
from actors.runtime.bus import Incoming, Stored
from actors.runtime.wire import header_block
from schemas import topology
from schemas.commands import Heartbeat
from schemas.events import Event, EventRefused, ToolRequested
from tests.actors.conftest import Stage
from tests.runtime.facts import call, until


class Probe(Actor):
    """Handles tool calls as their argument says."""

    kind = "tool"
    queue = "tool"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.handled: list[str] = []
        self.tried: list[str] = []
        self.dead: list[str] = []
        self.gate = asyncio.Event()

    async def work(self) -> None:
        """The queue does the work."""
        await self.wait_stopping()

    async def handle(self, event: Event, stored: Stored) -> None:
        """Fail, fail once, wait, or be done."""
        assert isinstance(event, ToolRequested)
        self.tried.append(event.id)
        if event.argument == "always":
            raise ValueError("this one cannot be handled")
        if event.argument == "once" and self.tried.count(event.id) == 1:
            raise ValueError("not yet")
        if event.argument == "slow":
            await self.gate.wait()
        self.handled.append(event.id)

    async def poisoned(self, stored: Stored) -> None:
        """Note it."""
        self.dead.append(stored.key[-1])

    def gauges(self) -> dict[str, float]:
        """How many were handled."""
        return {"n_handled": len(self.handled)}


def named(episode: str, argument: str) -> ToolRequested:
    event = call(episode, 0)
    return ToolRequested(**{name: getattr(event, name) for name in event.__struct_fields__} | {"argument": argument})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RETRY_DELAY_S", 0.02)
    monkeypatch.setattr(base, "HEARTBEAT_S", 0.05)


async def test_a_poisonous_fact_goes_to_dead_and_holds_nobody_up(stage: Stage) -> None:
    driver = await stage.connect("driver")
    await driver.append(named("poison", "always"), "poison")
    for n in range(10):
        await driver.append(named(f"e{n}", "once" if n == 4 else "ok"), f"e{n}")
    probe = Probe(await stage.context("tool-0"))
    await stage.start(probe)
    (refused,) = await stage.wait_for("dead", EventRefused)
    assert isinstance(refused, EventRefused)
    assert (refused.actor, refused.reason) == ("tool", "ValueError: this one cannot be handled")
    assert refused.data and refused.sequence == 1
    await until(lambda: len(probe.handled) == 10)
    assert probe.dead == ["poison"]
    assert probe.tried.count("poison-call-0") == base.MAX_DELIVERIES
    assert probe.tried.count("e4-call-0") == 2
    await asyncio.sleep(0.2)
    assert (await stage.buses[0].consumer_info("tool")).n_ack_pending == 0


async def test_bytes_that_are_no_event_go_to_dead_unchanged(stage: Stage) -> None:
    driver = await stage.connect("driver")
    subject = topology.subject(stage.run, ToolRequested, "strange")
    await driver._publisher.publish(subject, b"\xffno event", header_block(Nats_Msg_Id="x"), 5.0)  # type: ignore[attr-defined]
    await driver.append(named("e1", "ok"), "e1")
    probe = Probe(await stage.context("tool-0"))
    await stage.start(probe)
    (refused,) = await stage.wait_for("dead", EventRefused)
    assert isinstance(refused, EventRefused)
    assert refused.data == b"\xffno event"
    assert refused.subject == subject
    await until(lambda: probe.handled == ["e1-call-0"])


async def test_stopping_waits_for_what_is_under_way(stage: Stage) -> None:
    driver = await stage.connect("driver")
    await driver.append(named("e1", "slow"), "e1")
    probe = Probe(await stage.context("tool-0"))
    await stage.start(probe)
    await until(lambda: probe.tried == ["e1-call-0"])
    probe.stop()
    await until(lambda: probe.state == "draining")
    await driver.append(named("e2", "ok"), "e2")
    asyncio.get_running_loop().call_later(0.2, probe.gate.set)
    await stage.task(probe)
    assert probe.handled == ["e1-call-0"]
    successor = Probe(await stage.context("tool-1"))
    await stage.start(successor)
    await until(lambda: successor.handled == ["e2-call-0"])


async def test_a_failure_of_a_background_task_ends_the_actor(stage: Stage) -> None:
    probe = Probe(await stage.context("tool-0"))
    await stage.start(probe)

    async def fail() -> None:
        raise RuntimeError("broken")

    probe.spawn(fail(), "broken")
    with pytest.raises(ExceptionGroup, match="unhandled"):
        await stage.task(probe)


async def test_heartbeats_tell_state_and_gauges(stage: Stage) -> None:
    heard: list[Heartbeat] = []

    async def note(incoming: Incoming) -> None:
        assert isinstance(incoming.message, Heartbeat)
        heard.append(incoming.message)

    await stage.buses[0].subscribe(Heartbeat, ">", note)
    driver = await stage.connect("driver")
    await driver.append(named("e1", "slow"), "e1")
    probe = Probe(await stage.context("tool-7"))
    await stage.start(probe)
    await until(lambda: bool(heard) and heard[-1].state == "ready")
    probe.stop()
    await until(lambda: heard[-1].state == "draining")
    probe.gate.set()
    await stage.task(probe)
    assert {beat.actor_id for beat in heard} == {"tool-7"}
    assert heard[-1].gauges["n_handled"] in (0.0, 1.0)


class Slow(Probe):
    """Never gets ready."""

    closed = False

    async def start(self) -> None:
        """Wait for something that does not come."""
        await asyncio.Event().wait()

    async def abort_start(self) -> None:
        """Note it."""
        self.closed = True

    async def drain(self) -> None:
        """Must not be called before the actor was ready."""
        raise AssertionError


async def test_stopping_interrupts_the_start(stage: Stage) -> None:
    slow = Slow(await stage.context("tool-0"))
    await stage.start(slow, "starting")
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5.0):
        await stage.end(slow)
    assert slow.closed
