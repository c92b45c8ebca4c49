"""The batches of a recorded run: which steps stand, and what is said where the record does not suffice."""

from pathlib import Path

import msgspec
import pytest

from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from actors.runtime.recorded_steps import RecordedStep, RecordedSteps
from actors.runtime.run_files import RunFile
from actors.runtime.run_source import RunSource
from asearch.errors import InputError
from schemas.events import EpisodeGraded, StepTrained
from schemas.local import TrainGroup
from schemas.records import BlobRef, Version
from tests.cli.audited import put
from tests.evaluation.stories import Story, two_steps


async def recorded(story: Story, folder: Path, *, lost: int = 0) -> RecordedSteps:
    """A story's steps, read; the first `lost` outcomes are purged, and nobody had archived them."""
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), story.run, "operator", platform)
    await put(bus, story)
    if lost:
        await bus.purge("outcomes", up_to_sequence=lost)
    texts = dict.fromkeys(("broker_url", "corpus_url", "model_dir", "train_tasks", "eval_tasks", "weights_dir"), "")
    content = RunFile(run=story.run, settings=story.settings, supervisor_pid=1, supervisor_started=0.0, **texts)
    steps = RecordedSteps(RunSource(content, folder, bus))
    await steps.read()
    return steps


async def all_of(steps: RecordedSteps) -> list[tuple[RecordedStep, list[TrainGroup]]]:
    return [each async for each in steps.batches(len(steps))]


async def rewards_of(story: Story, folder: Path) -> list[float]:
    batches = await all_of(await recorded(story, folder))
    return [episode.reward for _, groups in batches for group in groups for episode in group.episodes]


async def test_groups_close_as_the_trainer_closed_them(tmp_path: Path) -> None:
    first, second = await all_of(await recorded(two_steps(), tmp_path))
    assert [group.group for group in first[1]] == ["t-0-0", "t-1-1"]
    assert [[each.reward for each in group.episodes] for group in first[1]] == [[1.0, 0.0], [0.0, 1.0]]
    assert [group.group for group in second[1]] == ["t-2-0"]
    assert (second[0].trained.step, second[0].claims) == (1, (Version(lineage=1, step=0),))


async def test_rewards_are_shuffled_as_the_run_says(tmp_path: Path) -> None:
    story = two_steps()
    rewards = msgspec.structs.replace(story.settings.rewards, permute=True)
    story.settings = msgspec.structs.replace(story.settings, rewards=rewards, seed=3)
    before = await rewards_of(story, tmp_path)
    story.settings = msgspec.structs.replace(story.settings, seed=4)
    after = await rewards_of(story, tmp_path)
    assert (sorted(after), after != before) == (sorted(before), True)


async def test_a_step_is_that_of_the_last_lineage_which_trained_it(tmp_path: Path) -> None:
    story = two_steps()
    told = [event for event in story.policy if isinstance(event, StepTrained)]
    verdicts = [[(each.group, each.episodes, each.reason) for each in event.verdicts] for event in told]
    story.claim(2, 1)
    story.claim(3, 1)
    story.train(1, verdicts[1], lineage=3)
    first, second = await all_of(await recorded(story, tmp_path))
    assert [(step.trained.step, step.trained.lineage) for step in (first[0], second[0])] == [(0, 1), (1, 3)]
    assert [(each.lineage, each.step) for each in second[0].claims] == [(1, 0), (2, 1), (3, 1)]
    story.claim(4, 0)
    assert len(await recorded(story, tmp_path)) == 0, "a trainer went back before all of them"


async def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outcome 1 of run 'r' is neither in OUTCOMES nor in"):
        await all_of(await recorded(two_steps(), tmp_path, lost=4))
    story = two_steps()
    story.train(2, [("t-9-0", 2, None)])
    with pytest.raises(InputError, match="close 2 steps, but its journal has 3"):
        await all_of(await recorded(story, tmp_path))
    story = two_steps()
    gone = BlobRef(episode="t-2-0-1", hash="ab" * 16, size_bytes=9, n_chunks=1)
    story.told = [
        (stream, n, msgspec.structs.replace(event, trajectory=gone))
        if isinstance(event, EpisodeGraded) and event.episode == gone.episode
        else (stream, n, event)
        for stream, n, event in story.told
    ]
    with pytest.raises(InputError, match="the trajectory of episode 't-2-0-1' is gone"):
        await all_of(await recorded(story, tmp_path))


async def test_other_groups_than_the_trainer_recorded_are_refused(tmp_path: Path) -> None:
    story = two_steps()
    story.settings = msgspec.structs.replace(story.settings, run=msgspec.structs.replace(story.settings.run, max_refills=0))
    with pytest.raises(InputError, match="step 0 of run 'r' closes over other groups"):
        await all_of(await recorded(story, tmp_path))
