"""Two trainers of one run: exactly one publishes, the other ends with SecondTrainerError, and harms nothing."""

import asyncio
import random
import signal
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from asearch.configuration.settings import Settings
from schemas.events import PolicyPublished, StepTrained, TrainerClaimed
from tests.crash.conftest import MakeRun
from tests.crash.prefilled import Prefilled, ended, settings_of, weights_of
from tests.crash.trainer_process import STATUS_OF_OURS

STEPS = 12
STEP_S = 0.04
N_TIMES = 20


def settings() -> Settings:
    """A run of half a second."""
    return settings_of(STEPS)


async def judge(run: Prefilled, lives: list[Process]) -> int:
    """One of the two is refused, the other trains to the end; journal and disk are sound. Returns which one was refused."""
    waiting = [asyncio.create_task(ended(life)) for life in lives]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    refused = 0 if waiting[0].done() else 1
    status, said = waiting[refused].result()
    assert (status, "SecondTrainerError: " in said) == (STATUS_OF_OURS, True), said
    await run.wait_until_done()
    manifest = (await run.last_published()).manifest
    assert [(Path(manifest.path) / shard.name).stat().st_size for shard in manifest.shards] == [
        shard.size_bytes for shard in manifest.shards
    ]
    lives[1 - refused].terminate()
    assert (await waiting[1 - refused])[0] == 0
    await run.checked()
    claims = [event for _, event in await run.policy() if isinstance(event, TrainerClaimed)]
    assert [claim.lineage for claim in claims] == list(range(1, len(claims) + 1))
    return refused


async def expected_weights(make_run: MakeRun) -> dict[str, str]:
    """What a run that nothing disturbs comes to."""
    run = await make_run("straight", settings())
    status, said = await run.live(light_s=0.0)
    assert status == 0, said
    return weights_of(await run.checked())


async def by_mistake(make_run: MakeRun, name: str, chance: random.Random, light_s: float | None = STEP_S) -> Prefilled:
    """Two trainers are started; how far apart is left to chance."""
    run = await make_run(name, settings())
    first = await run.start(light_s=light_s, stay=True)
    if chance.random() < 0.5:
        await run.wait_for(TrainerClaimed)
    await asyncio.sleep(chance.uniform(0.0, STEPS * STEP_S / 2))
    await judge(run, [first, await run.start(light_s=light_s, stay=True)])
    return run


async def woken(make_run: MakeRun, name: str, chance: random.Random, light_s: float | None = STEP_S) -> Prefilled:
    """A trainer is stopped, its successor claims the model, and it wakes up some time after that."""
    run = await make_run(name, settings())
    first = await run.start(light_s=light_s, stay=True)
    step = chance.randrange(STEPS - 1)
    await run.wait_for(StepTrained, step) if step else await run.wait_for(TrainerClaimed)
    await asyncio.sleep(chance.uniform(0.0, STEP_S))
    first.send_signal(signal.SIGSTOP)
    second = await run.start(light_s=light_s, stay=True)
    claim = await run.wait_for(TrainerClaimed, 2)
    assert isinstance(claim, TrainerClaimed)
    if chance.random() < 0.5:
        await asyncio.sleep(chance.uniform(0.0, STEPS * STEP_S))
    first.send_signal(signal.SIGCONT)
    assert await judge(run, [first, second]) == 0
    policy = [event for _, event in await run.policy()]
    after = [event.version.lineage for event in policy[policy.index(claim) :] if isinstance(event, PolicyPublished)]
    assert set(after) == {2}
    return run


async def test_of_two_trainers_one_publishes(make_run: MakeRun) -> None:
    expected = await expected_weights(make_run)
    run = await by_mistake(make_run, "twice", random.Random(1))
    assert weights_of(await run.checked()) == expected


async def test_a_trainer_that_wakes_up_publishes_nothing(make_run: MakeRun) -> None:
    expected = await expected_weights(make_run)
    run = await woken(make_run, "woken", random.Random(1))
    assert weights_of(await run.checked()) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scene", [by_mistake, woken])
async def test_twenty_times_each(make_run: MakeRun, scene: type) -> None:
    expected = await expected_weights(make_run)
    for seed in range(N_TIMES):
        run = await scene(make_run, f"{seed}", random.Random(seed))
        assert weights_of(await run.checked()) == expected, seed


@pytest.mark.slow
@pytest.mark.parametrize("scene", [by_mistake, woken])
async def test_with_the_real_rank(make_run: MakeRun, scene: type) -> None:
    await scene(make_run, "real", random.Random(7), None)
