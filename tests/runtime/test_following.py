"""A run followed from outside: streams folded while they grow, heartbeats and rates, a broker that loses its tail."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from actors.runtime.bus import Bus
from actors.runtime.following import Vitals, follow
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from schemas.commands import Heartbeat
from tests.cli.audited import key_of, put
from tests.cli.frames import folded
from tests.evaluation.stories import SECOND, two_steps
from tests.runtime.conftest import Harness
from tests.runtime.facts import until


def beat(at_s: float, pid: int = 1, actor_id: str = "engine-0", **gauges: float) -> Heartbeat:
    return Heartbeat(actor="engine", actor_id=actor_id, pid=pid, at_ns=int(at_s * SECOND), state="ready", gauges=gauges)


async def test_a_view_follows_what_is_appended(harness: Harness) -> None:
    writer, reader = await harness.bus("scheduler"), await harness.bus("viewer")
    story = two_steps()
    early, late = story.told[:20], story.told[20:]
    story.told = early
    await put(writer, story)
    async with follow(reader) as view:
        assert sum(view.report.folded.values()) == 20, "what is stored is folded before the view is handed out"
        for _, _, event in late:
            await writer.append(event, key_of(event))
        await writer.publish(beat(1.0), key="engine-0")
        await until(lambda: view.report.ended is not None and view.report.checkpoint is None and bool(view.vitals.latest))
        await view.catch_up(reader)
        await until(lambda: set(view.queues) == {"driver", "tool", "grader"})
    story.told = early + late
    assert view.report.to_json() == folded(story).to_json()


@contextlib.asynccontextmanager
async def memory_bus() -> AsyncIterator[tuple[MemoryBroker, Bus]]:
    platform = SystemPlatform(0)
    broker = MemoryBroker(platform)
    bus = MemoryBus(broker, "r", "viewer", platform)
    yield broker, bus
    await bus.close()


async def test_a_lost_tail_begins_a_new_report() -> None:
    story = two_steps()
    async with memory_bus() as (broker, bus):
        await put(bus, story)
        async with follow(bus) as view:
            first = view.report
            broker.stream("r", "outcomes").lose_tail(3)
            await until(lambda: view.report is not first and view.report.folded["outcomes"] == len(story.outcomes) - 3)
            assert view.report.accounts.terms("train")["in_flight"] > 0


async def test_an_error_in_the_block_ends_the_followers() -> None:
    async with memory_bus() as (_, bus):
        await bus.ensure_topology()
        with pytest.raises(ExceptionGroup) as caught:
            async with follow(bus):
                raise ValueError("mine")
        assert isinstance(caught.value.exceptions[0], ValueError)


def test_rates_are_of_one_process() -> None:
    vitals = Vitals()
    assert vitals.rate("engine-0", "n_tokens") is None and vitals.total_rate("engine", "n_tokens") is None
    vitals.heard(beat(1.0, n_tokens=100.0))
    assert vitals.rate("engine-0", "n_tokens") is None
    vitals.heard(beat(3.0, n_tokens=500.0))
    assert vitals.rate("engine-0", "n_tokens") == 200.0
    vitals.heard(beat(5.0, n_tokens=10.0, pid=2))
    assert vitals.rate("engine-0", "n_tokens") is None, "a restarted process counts from zero"
    vitals.heard(beat(7.0, n_tokens=30.0, pid=2))
    vitals.heard(beat(6.0, n_tokens=0.0, actor_id="engine-1"))
    vitals.heard(beat(7.0, n_tokens=5.0, actor_id="engine-1"))
    assert vitals.total_rate("engine", "n_tokens") == 15.0
    for second in range(8, 40):
        vitals.heard(beat(float(second), n_tokens=30.0, pid=2))
    assert vitals.rate("engine-0", "n_tokens") == 0.0, "only the last seconds count"
    assert vitals.age_s("engine-0", 41 * SECOND) == 2.0 and vitals.age_s("nobody", 0) is None
