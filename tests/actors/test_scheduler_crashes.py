"""A scheduler that dies before and after every append of its life, against a small world that goes on without it."""

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.runtime.actor import Context
from actors.runtime.bus import Bus
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.outcomes import append_outcome, identity
from actors.scheduler import Scheduler
from asearch.configuration.settings import EvaluationSettings, RunSettings, Settings
from asearch.data.tasks import LoadedTask
from asearch.learning.ledger import Ledger, StepClosed
from asearch.learning.rules import ledger_rules
from schemas.events import (
    CheckpointCommitted,
    EpisodeGraded,
    EpisodeRequested,
    Event,
    GroupAdmitted,
    Outcome,
    PlanFolded,
    PolicyPublished,
    RunEnded,
    StepTrained,
)
from schemas.records import Reward, Version, WeightManifest
from tests.actors.conftest import Stage
from tests.runtime.facts import until
from tests.sim.virtual import VirtualLoop, VirtualPlatform

TASKS = [LoadedTask(id=f"task-{n}", question="Which?", answers=["red"]) for n in range(5)]
SETTINGS = Settings(
    run=RunSettings(steps=3, groups_per_step=2, group_size=2, eta=1, max_groups_in_flight=4, max_refills=1, lease_s=5.0),
    evaluation=EvaluationSettings(questions=2),
)


class Died(BaseException):
    """The scheduler was killed."""


class World:
    """Answers requests, trains what closes, commits after every step, and purges OUTCOMES as the recorder does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.ended: dict[str, int] = {}

    async def answer(self) -> None:
        async with aclosing(self.bus.read("plan", events=(EpisodeRequested,))) as plan:
            async for stored in plan:
                request = stored.event
                assert isinstance(request, EpisodeRequested)
                if request.episode in self.ended:
                    continue
                self.ended[request.episode] = stored.sequence
                flat = request.group == "t-1-0"
                fields: dict[str, Any] = {**identity(request, 0)}
                value = 0.0 if flat else float(request.member)
                graded = EpisodeGraded(
                    **fields, reward=Reward(value=value), trajectory=None, status="answered", answer="a", n_turns=1,
                    n_tokens_generated=1, n_searches=0, n_reads=0,
                )  # fmt: skip
                await asyncio.sleep(0.05)
                await append_outcome(self.bus, graded)

    async def train(self) -> None:
        await self._publish(0)
        ledger, watermarks = Ledger(ledger_rules(SETTINGS.run)), [0]
        async with aclosing(self.bus.read("outcomes")) as outcomes:
            async for stored in outcomes:
                if not isinstance(stored.event, Outcome) or stored.event.purpose != "train":
                    continue
                for effect in ledger.fold(stored.sequence, stored.event):
                    if isinstance(effect, StepClosed):
                        await self._step(effect)
                        watermarks.append(effect.snapshot.watermark)
                        await self._purge(watermarks[-2])

    async def _step(self, closed: StepClosed) -> None:
        names: dict[str, Any] = {"model": "policy", "lineage": 1, "step": closed.step}
        counts = {"n_tokens_trained": len(closed.groups), "n_tokens_masked_stale": 0, "n_tokens_discarded": 0}
        step = StepTrained(
            id=f"s{closed.step}", **names, verdicts=[], staleness={}, **counts, empty=not closed.groups, metrics={}
        )
        await self.bus.append(step, "policy")
        saved = CheckpointCommitted(
            id=f"c{closed.step}", **names, path="", watermark=closed.snapshot.watermark, counted=closed.snapshot.counted
        )
        await self.bus.append(saved, "policy")
        await self._publish(closed.step + 1)

    async def _purge(self, watermark: int) -> None:
        folded = await self.bus.get_last(PlanFolded, "r")
        if folded is not None and isinstance(folded.event, PlanFolded):
            await self.bus.purge("outcomes", up_to_sequence=min(watermark, folded.event.watermark))

    async def _publish(self, step: int) -> None:
        manifest, version = WeightManifest(path="/", shards=[]), Version(lineage=1, step=step)
        await self.bus.append(
            PolicyPublished(id=f"p{step}", model="policy", version=version, parent=None, manifest=manifest), "policy"
        )


async def play(folder: Path, deaths: set[int]) -> tuple[list[Event], list[str], int]:
    """PLAN, the episodes of OUTCOMES as they were stored, and how many points the schedulers passed; they die at some."""
    broker, n_passed = MemoryBroker(VirtualPlatform("broker", 0)), [0]

    def bus_of(actor: str) -> MemoryBus:
        return MemoryBus(broker, "r", actor, VirtualPlatform(actor, 0))

    bus = bus_of("trainer")
    await bus.ensure_topology()
    stored: list[str] = []
    stream, append = broker.stream("r", "outcomes"), broker.stream("r", "outcomes").append

    def noted(record: Any, *rest: Any) -> tuple[int, bool]:
        sequence, known = append(record, *rest)
        if not known:
            stored.append(record.subject.rsplit(".", 1)[-1])
        return sequence, known

    stream.append = noted  # type: ignore[method-assign]
    world = World(bus)
    workers = [asyncio.create_task(world.answer()), asyncio.create_task(world.train())]
    for _ in range(len(deaths) + 1):
        mine = bus_of("scheduler")

        async def fault(name: str) -> None:
            n_passed[0] += 1
            if n_passed[0] in deaths:
                raise Died(name)

        mine.platform.fault = fault  # type: ignore[method-assign]
        context = Context("r", folder, SETTINGS, mine, mine.platform, "scheduler-0")
        scheduler = Scheduler(context, TASKS, TASKS[:2])
        try:
            async with asyncio.timeout(600.0):
                await scheduler.run(2.0)
            break
        except BaseExceptionGroup as error:
            assert error.subgroup(Died) is not None, error
            await mine.close()
    for worker in workers:
        worker.cancel()
    async with aclosing(bus.read("plan", follow=False)) as plan:
        return [each.event async for each in plan if each.event is not None], stored, n_passed[0]


def check(plan: list[Event], stored: list[str]) -> None:
    """Whole groups, each once, each episode with one outcome, one end."""
    assert isinstance(plan[-1], RunEnded)
    assert sum(isinstance(event, RunEnded) for event in plan) == 1
    assert plan[-1].reason == "completed"
    groups = Counter(event.group for event in plan if isinstance(event, GroupAdmitted))
    assert set(groups.values()) == {1}
    slots = {"t-0-0", "t-1-0", "t-1-1", "t-2-0", "t-3-0", "t-4-0", "t-5-0"}
    assert set(groups) == slots | {f"e-{label}-{n}" for label in ("before", "after") for n in range(2)}
    members = {event.group: event.members for event in plan if isinstance(event, GroupAdmitted)}
    first = Counter(event.group for event in plan if isinstance(event, EpisodeRequested) and event.attempt == 0)
    assert first == members
    assert Counter(stored) == Counter({f"{group}-{member}": 1 for group, n in members.items() for member in range(n)})


def test_a_scheduler_may_die_before_and_after_any_append(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        plan, stored, n_points = runner.run(play(tmp_path, set()))
    check(plan, stored)
    assert any(isinstance(event, PlanFolded) and event.watermark for event in plan)
    assert n_points > 80
    for point in range(1, n_points):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            plan, stored, _ = runner.run(play(tmp_path, {point, point + 7, point + 30}))
        check(plan, stored)


@pytest.mark.parametrize(("stream", "reason"), [("trace", ""), ("plan", "plan_full")])
async def test_admission_stops_before_a_stream_is_full(stage: Stage, stream: str, reason: str) -> None:
    """On a real broker with small bounds: PLAN ends the run, of the others the scheduler says that it waits."""
    settings = msgspec.structs.replace(SETTINGS, evaluation=EvaluationSettings(before=False, after=False))
    await stage.buses[0].ensure_topology({stream: 14_000 if stream == "plan" else 1000})
    trainer, driver = await stage.connect("trainer"), await stage.connect("driver")
    world = World(trainer)
    if stream == "trace":
        from tests.runtime.facts import call

        await driver.append(call("e1", 0, 700), "e1")
    held = Scheduler(await stage.context("scheduler-0", settings), TASKS, [])
    await stage.start(held)
    await world._publish(0)
    if reason:
        (ended,) = await stage.wait_for("plan", RunEnded)
        assert isinstance(ended, RunEnded)
        assert (ended.reason, "of its 14,000 bytes" in ended.message) == (reason, True)
        return
    await until(lambda: held.waiting_for.startswith("room: TRACE is at"))
    assert await stage.facts("plan", GroupAdmitted) == []
    await stage.buses[0].purge("trace")
    assert len(await stage.wait_for("plan", GroupAdmitted, n=4)) == 4
    assert held.waiting_for == ""
