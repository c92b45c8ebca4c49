"""Thousands of bad messages on every stream, among good episodes: no actor dies, all are in DEAD once, the good ones go on."""

from pathlib import Path

import pytest

from schemas.topology import MAX_PAYLOAD_BYTES
from tests.actors.conftest import Stage, stage  # noqa: F401 -- a fixture
from tests.actors.conftest import model_dir as model_dir
from tests.fuzz.fuzzed_run import FuzzedRun
from tests.runtime.conftest import broker as broker


async def play(
    stage: Stage,  # noqa: F811
    model_dir: str,
    folder: Path,
    *,
    n: int,
    per_s: float,
    n_windows: int,
    quiet_s: float,
    step_ms: int,
) -> tuple[float, float]:
    """Everything that must hold whatever comes in; graded episodes per second with fuzz and without."""
    run = FuzzedRun(stage, model_dir, folder, seed=1, step_ms=step_ms)
    await run.start()
    await run.fuzz(n, per_s, n_windows=n_windows, quiet_s=quiet_s)
    assert run.deaths() == [], run.states()
    await run.stop()
    fuzzed, quiet = run.good_per_s()
    print(f"{n} messages in {run.fuzz_s:.0f} s; good episodes per second: {fuzzed:.2f} with fuzz, {quiet:.2f} without")
    buried = await run.all_buried(timeout_s=30.0 + n / 1000)
    assert set(buried) == set(run.poison), "an event in its place was refused"
    assert max(buried.values()) == 1
    assert len(run.valid) > n / 100
    refused = [size for size, _ in run.refused]
    assert len(run.poison) + len(run.valid) + len(refused) == n
    assert all(size > MAX_PAYLOAD_BYTES for size in refused) and len(refused) == 3
    assert max(bus.gauges()["n_disconnects"] for bus in stage.buses) == 0
    assert run.deaths() == []
    terms, problems = await run.audited()
    assert problems == []
    assert terms["ended"] == "stopped" and terms["accounting"]["in_flight"] == 0
    return fuzzed, quiet


@pytest.mark.timeout(120)
async def test_two_thousand_bad_messages(stage: Stage, model_dir: str, tmp_path: Path) -> None:  # noqa: F811
    fuzzed, quiet = await play(stage, model_dir, tmp_path, n=2000, per_s=300.0, n_windows=2, quiet_s=2.0, step_ms=100)
    assert fuzzed > 0 and quiet > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_thousand_bad_messages(stage: Stage, model_dir: str, tmp_path: Path) -> None:  # noqa: F811
    # All actors, broker client and the sender share one process here: the good load is one that it bears with the fuzz.
    fuzzed, quiet = await play(stage, model_dir, tmp_path, n=100_000, per_s=300.0, n_windows=10, quiet_s=12.0, step_ms=3000)
    assert fuzzed >= 0.9 * quiet
