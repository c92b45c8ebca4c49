"""The equality oracle: whatever kills the trainer, its weights are in the end those of a run that nothing disturbed.

Real processes: trainer, Megatron rank and broker. Compared are weights, optimizer and RNG of the last checkpoint, bit for bit,
and its ledger; the journal has to pass the audit's checks.
"""

import signal

import pytest

from asearch.configuration.settings import Settings
from schemas.events import StepTrained, TrainerClaimed
from tests.crash.conftest import MakeRun
from tests.crash.prefilled import ledger_of, settings_of, weights_of
from tests.crash.trainer_process import STATUS_OF_OURS

STEPS = 8
SETTINGS = settings_of(STEPS)
SMOKE = ["trainer.checkpoint_in_place:1", "trainer.exported:3"]
"""Between a checkpoint's name and its commit, and between an export and its announcement."""
CHAINS = {
    "resume": [
        "trainer.checkpoint_committed:1",
        "trainer.claimed:1",
        "trainer.loaded:1",
        "trainer.export_asked:1:rank",
        "trainer.exported:1",
    ],
    "step": [
        "trainer.checkpoints_pruned:1",
        "trainer.step_asked:1:rank",
        "trainer.updated:2",
        "trainer.tokens_stored:1",
        "trainer.recorded:1",
        "trainer.export_asked:2:rank",
        "trainer.done:1",
    ],
    "checkpoint": [
        "trainer.checkpoint_in_place:1",
        "trainer.checkpoint_asked:1",
        "trainer.checkpoint_copied:1",
        "trainer.checkpoint_copied:1:rank",
        "trainer.checkpoint_written:1",
    ],
    "committing": [
        "trainer.checkpoint_whole:1",
        "trainer.checkpoints_pruned:1",
        "trainer.exported:2",
        "trainer.last_checkpoint:1",
        "trainer.published:1",
    ],
}
"""22 crashes: each is met by the life that resumes after the one before it."""


async def crash_and_compare(make_run: MakeRun, faults: list[str], settings: Settings = SETTINGS) -> None:
    """Run once undisturbed and once with a crash at every point, and compare what they come to."""
    straight, broken = await make_run("straight", settings), await make_run("broken", settings)
    status, said = await straight.live()
    assert status == 0, said
    for fault in faults:
        status, said = await broken.live(fault)
        assert status == (STATUS_OF_OURS if fault.endswith("rank") else -signal.SIGKILL), f"{fault}: {said}"
    status, said = await broken.live()
    assert status == 0, said
    expected, found = await straight.checked(), await broken.checked()
    assert weights_of(found) == weights_of(expected)
    assert ledger_of(found) == ledger_of(expected)
    shards = [(await run.last_published()).manifest.shards for run in (straight, broken)]
    assert shards[0] == shards[1]
    policy = [event for _, event in await broken.policy()]
    claims = [event for event in policy if isinstance(event, TrainerClaimed)]
    assert len(claims) == len(faults) + 1
    assert any(claim.checkpoint is not None and 0 < claim.step < STEPS for claim in claims), "no life went on from a checkpoint"
    assert sum(isinstance(event, StepTrained) for event in policy) > STEPS


async def test_a_trainer_that_dies_twice_ends_with_the_same_weights(make_run: MakeRun) -> None:
    await crash_and_compare(make_run, SMOKE)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CHAINS))
async def test_a_trainer_that_dies_anywhere_ends_with_the_same_weights(make_run: MakeRun, name: str) -> None:
    await crash_and_compare(make_run, CHAINS[name])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"data_parallel": 2}], ids=str)
async def test_a_trainer_of_two_ranks_that_dies_ends_with_the_same_weights(make_run: MakeRun, layout: dict[str, int]) -> None:
    faults = ["trainer.checkpoint_in_place:1", "trainer.step_asked:1:rank", "trainer.exported:2"]
    await crash_and_compare(make_run, faults, settings_of(STEPS, **layout))
