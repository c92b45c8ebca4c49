"""A trainer on full disks says so, tears nothing, goes on when there is room, and comes to the same weights."""

import pytest

from schemas.events import StepTrained
from tests.crash.conftest import MakeRun
from tests.crash.prefilled import ended, settings_of, weights_of
from tests.crash.small_disk import small_disk

STEPS = 4


@pytest.mark.slow
async def test_full_disks_are_survived(make_run: MakeRun) -> None:
    straight, run = [await make_run(name, settings_of(STEPS)) for name in ("straight", "full")]
    status, said = await straight.live()
    assert status == 0, said
    with small_disk(run.weights_dir) as weights, small_disk(run.folder / "checkpoints") as checkpoints:
        weights.fill()
        checkpoints.fill()
        trainer = await run.start()
        await run.wait_for_log("weights could not be written")
        assert [path.name for path in weights.folder.iterdir()] == ["filler"]
        weights.free()
        await run.wait_for_log("the checkpoint of step 2 could not be written")
        await run.wait_for(StepTrained, STEPS)
        assert [path.name for path in checkpoints.folder.iterdir() if path.name[0] != "."] == ["filler"]
        checkpoints.free()
        status, said = await ended(trainer)
        assert status == 0, said
        assert weights_of(await run.checked()) == weights_of(await straight.checked())


@pytest.mark.slow
async def test_a_disk_that_stays_full_is_named_with_the_fix(make_run: MakeRun) -> None:
    run = await make_run("full", settings_of(STEPS))
    with small_disk(run.weights_dir) as weights:
        weights.fill()
        status, said = await run.live()
        assert (status, [path.name for path in weights.folder.iterdir()]) == (3, ["filler"])
    assert "StorageError: " in said
    assert "No space left" in said
    assert f"free space on the disk of {run.weights_dir}, or set checkpoint.weights_dir" in said
