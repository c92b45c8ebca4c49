"""The scheduler: the only writer of PLAN, whole groups, nothing left in flight."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from actors.scheduler import Scheduler, SecondSchedulerError
from asearch.configuration.settings import EvaluationSettings, Settings
from asearch.data.tasks import LoadedTask
from schemas.commands import Lease
from schemas.events import (
    EpisodeDropped,
    EpisodeRequested,
    GroupAdmitted,
    PlanFolded,
    PolicyPublished,
    RunEnded,
    RunStarted,
    StepTrained,
)
from schemas.records import Version, WeightManifest
from tests.actors.conftest import Stage
from tests.sim.scenario import SETTINGS

TASKS = [LoadedTask(id=f"task-{n}", question="Which?", answers=["red"]) for n in range(8)]
TRAIN_ONLY = msgspec.structs.replace(SETTINGS, evaluation=EvaluationSettings(before=False, after=False))


def with_lease(lease_s: float) -> Settings:
    return msgspec.structs.replace(TRAIN_ONLY, run=msgspec.structs.replace(SETTINGS.run, lease_s=lease_s))


async def publish(stage: Stage) -> None:
    bus = await stage.connect("trainer")
    version = Version(lineage=1, step=0)
    manifest = WeightManifest(path="/nowhere", shards=[])
    await bus.append(PolicyPublished(id="p", model="policy", version=version, parent=None, manifest=manifest), "policy")


async def scheduler(stage: Stage, settings: Settings = TRAIN_ONLY, name: str = "scheduler-0") -> Scheduler:
    held = Scheduler(await stage.context(name, settings), TASKS, [])
    await stage.start(held)
    return held


async def test_of_two_schedulers_one_exits(stage: Stage) -> None:
    await scheduler(stage)
    second = await scheduler(stage, name="scheduler-1")
    await publish(stage)
    async with asyncio.timeout(15.0):
        done, _ = await asyncio.wait([task for _, task in stage.living], return_when=asyncio.FIRST_COMPLETED)
    (loser,) = done
    error = loser.exception()
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(SecondSchedulerError) is not None
    assert len(await stage.facts("plan", RunStarted)) == 1
    groups = await stage.wait_for("plan", GroupAdmitted, n=9)
    assert len({group.group for group in groups}) == 9  # type: ignore[attr-defined]
    assert second in [actor for actor, _ in stage.living]


async def test_a_stop_in_the_middle_leaves_whole_groups_and_nothing_in_flight(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every append takes a while to be confirmed, so the stop always comes while one is under way."""
    context = await stage.context("scheduler-0", TRAIN_ONLY)
    append = context.bus.append

    async def slow(*args: Any, **named: Any) -> int:
        sequence = await append(*args, **named)
        await asyncio.sleep(0.05)
        return sequence

    monkeypatch.setattr(context.bus, "append", slow)
    held = Scheduler(context, TASKS, [])
    await stage.start(held)
    await publish(stage)
    await stage.wait_for("plan", EpisodeRequested, n=4)
    await stage.end(held)
    plan = await stage.facts("plan")
    assert isinstance(plan[-1], RunEnded)
    assert plan[-1].reason == "stopped"
    requested = Counter(event.group for event in plan if isinstance(event, EpisodeRequested))
    groups = [event for event in plan if isinstance(event, GroupAdmitted)]
    assert all(requested[group.group] == group.members for group in groups)
    dropped = [event for event in await stage.facts("outcomes") if isinstance(event, EpisodeDropped)]
    assert {event.reason for event in dropped} == {"run_ended"}
    assert {event.episode for event in dropped} == {event.episode for event in plan if isinstance(event, EpisodeRequested)}


async def test_a_restart_asks_for_what_an_admitted_group_still_lacks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the admission of the last group there is room for and the requests for its episodes."""
    context = await stage.context("scheduler-0", TRAIN_ONLY)

    points: list[str] = []

    async def crash(name: str) -> None:
        points.append(name)
        if points.count("scheduler.group_admitted") == 9:
            raise RuntimeError("killed")

    monkeypatch.setattr(context.platform, "fault", crash)
    first = Scheduler(context, TASKS, [])
    await stage.start(first)
    await publish(stage)
    with pytest.raises(ExceptionGroup):
        await stage.task(first)
    assert len(await stage.facts("plan", GroupAdmitted)) == 9
    assert len(await stage.facts("plan", EpisodeRequested)) == 24
    await scheduler(stage)
    requested = await stage.wait_for("plan", EpisodeRequested, n=27)
    assert [event.episode for event in requested[24:]] == ["t-8-0-0", "t-8-0-1", "t-8-0-2"]  # type: ignore[attr-defined]


async def test_what_nobody_holds_is_asked_for_again(stage: Stage) -> None:
    held = await scheduler(stage, with_lease(1.0))
    await publish(stage)
    first = await stage.wait_for("plan", EpisodeRequested, n=27)
    driver, kept = await stage.connect("driver"), first[0].episode  # type: ignore[attr-defined]

    async def hold() -> None:
        while True:
            await driver.publish(Lease(driver="driver-0", at_ns=0, episodes=[kept]), key="driver-0")
            await asyncio.sleep(0.2)

    holding = asyncio.create_task(hold())
    everything = await stage.wait_for("plan", EpisodeRequested, n=27 + 26)
    again = [event for event in everything[27:] if isinstance(event, EpisodeRequested)]
    assert {event.attempt for event in again} == {1}
    assert kept not in {event.episode for event in again}
    assert len({event.episode for event in again}) == 26
    holding.cancel()
    await stage.end(held)


@pytest.mark.parametrize("n_tokens_trained", [0, 5])
async def test_steps_that_teach_nothing_end_the_run(stage: Stage, n_tokens_trained: int) -> None:
    """Such are those of kept groups whose advantages all vanish, too."""
    limit = 2
    settings = msgspec.structs.replace(
        TRAIN_ONLY, run=msgspec.structs.replace(SETTINGS.run, max_empty_steps=limit, equal_rewards="keep")
    )
    await scheduler(stage, settings)
    await publish(stage)
    trainer = await stage.connect("trainer")
    for number in range(limit + 1):
        step = StepTrained(
            id=f"s{number}", model="policy", lineage=1, step=number, verdicts=[], staleness={}, n_tokens_trained=n_tokens_trained,
            n_tokens_masked_stale=0, n_tokens_discarded=0, empty=False, metrics={},
        )  # fmt: skip
        await trainer.append(step, "policy")
    if n_tokens_trained:
        await asyncio.sleep(0.5)
        assert await stage.facts("plan", RunEnded) == []
        return
    (ended,) = await stage.wait_for("plan", RunEnded)
    assert isinstance(ended, RunEnded) and ended.reason == "max_empty_steps"


async def test_an_ended_run_stays_ended(stage: Stage) -> None:
    held = await scheduler(stage)
    await stage.end(held)
    again = Scheduler(await stage.context("scheduler-0", TRAIN_ONLY), TASKS, [])
    await stage.start(again)
    await publish(stage)
    async with asyncio.timeout(10.0):
        await stage.task(again)
    assert [type(event) for event in await stage.facts("plan")] == [RunStarted, PlanFolded, RunEnded]
