"""Thousands of bad messages on every stream, among good episodes: no actor dies, all are in DEAD once, the run completes."""

import asyncio
from pathlib import Path

import pytest

from tests.actors.conftest import Stage, stage  # noqa: F401 -- a fixture
from tests.actors.conftest import model_dir as model_dir
from tests.fuzz.fuzzed_run import READ, FuzzedRun
from tests.runtime.conftest import broker as broker


async def play(stage: Stage, model_dir: str, folder: Path, *, n: int, per_s: float, steps: int) -> FuzzedRun:  # noqa: F811
    run = FuzzedRun(stage, model_dir, folder, steps=steps, seed=1)
    await run.start()
    fuzzing = asyncio.create_task(run.fuzz(n, per_s))
    ended = await run.ended(n / per_s + 120.0)
    await fuzzing
    assert ended.reason == "completed", ended
    assert run.deaths() == []
    expected = {place for place in run.sent if place[0] in READ[1:]}
    async with asyncio.timeout(60.0):
        while not expected <= set(await run.buried()):  # noqa: ASYNC110 -- DEAD is read again
            await asyncio.sleep(0.5)
    buried = await run.buried()
    assert max(buried.values()) == 1
    assert set(buried) <= set(run.sent), "a good message was refused"
    terms, problems = await run.audited()
    assert problems == []
    assert terms["accounting"]["in_flight"] == 0
    return run


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_three_thousand_bad_messages(stage: Stage, model_dir: str, tmp_path: Path) -> None:  # noqa: F811
    run = await play(stage, model_dir, tmp_path, n=3000, per_s=400.0, steps=3)
    assert run.n_refused_by_broker <= 2 and len(run.sent) >= 2998


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_thousand_bad_messages(stage: Stage, model_dir: str, tmp_path: Path) -> None:  # noqa: F811
    await play(stage, model_dir, tmp_path, n=100_000, per_s=500.0, steps=20)
