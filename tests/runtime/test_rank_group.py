"""A group of ranks answers as one and dies as one, seen with processes that speak the channel but train nothing."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from actors.runtime.platform import SystemPlatform, SystemProcess
from actors.runtime.rank_group import RankGroup, start_ranks
from actors.runtime.rank_replies import merged
from actors.runtime.ranks import RankProcess
from asearch.errors import StorageError, TrainingError
from asearch.training.settings import TrainerSettings
from schemas.local import (
    AwaitCheckpoint,
    CheckpointCopied,
    CheckpointProgress,
    ModelLoaded,
    Reply,
    StepDone,
    TrainStep,
    WeightsExported,
)
from schemas.records import ShardFile, WeightManifest

STEP_DONE = StepDone(step=0, skipped=False, n_tokens_trained=1, n_tokens_masked_stale=0, staleness={}, metrics={}, elapsed_ns=1)
PROMPT_S = 20.0
"""A death is noticed in this time, however long a reply may take."""


class LightPlatform(SystemPlatform):
    """Starts light ranks in the place of the trainer's."""

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> SystemProcess:
        changed = ["tests.runtime.light_rank" if part == "asearch.training.rank" else part for part in argv]
        return await super().spawn(changed, env=env, log_path=log_path, pass_fds=pass_fds)


@asynccontextmanager
async def group(folder: Path) -> AsyncGenerator[RankGroup]:
    started = await start_ranks(LightPlatform(), TrainerSettings(tensor_parallel=2), folder / "rank.log")
    assert isinstance(started, RankGroup)
    try:
        yield started
    finally:
        await started.stop()
    assert all(member.process.returncode is not None for member in started.members)


async def step(ranks: RankGroup, number: int) -> StepDone:
    return await ranks.ask(TrainStep(step=number, lineage=0, groups=[]), StepDone, 60.0)


async def test_all_ranks_carry_out_a_command_and_answer_as_one(tmp_path: Path) -> None:
    async with group(tmp_path) as ranks:
        pids = [member.process.pid for member in ranks.members]
        done = await step(ranks, 0)
        assert done.metrics == {"loss": 0.5, "tokens_per_s": min(pids)}
        assert done.elapsed_ns == max(pids)
    assert {path.name for path in tmp_path.iterdir()} == {"rank0.log", "rank1.log"}


async def test_a_rank_that_is_killed_takes_the_group_with_it_at_once(tmp_path: Path) -> None:
    async with group(tmp_path) as ranks:
        begun_s = time.monotonic()
        with pytest.raises(TrainingError, match=r"rank 1 of 2 is gone \(signal 9\)[\s\S]*the last words of rank 1"):
            await step(ranks, 1)
        await asyncio.wait_for(ranks.members[0].process.wait(), PROMPT_S)
        assert time.monotonic() - begun_s < PROMPT_S
        assert ranks.members[0].process.returncode == -signal.SIGKILL
        with pytest.raises(TrainingError, match="rank 1 of 2 is gone"):
            await step(ranks, 0)


async def test_the_death_of_an_idle_rank_is_noticed_without_a_command(tmp_path: Path) -> None:
    async with group(tmp_path) as ranks:
        watching = asyncio.create_task(ranks.watch())
        os.kill(ranks.members[0].process.pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"rank 0 of 2 is gone \(signal 9\)"):
            await asyncio.wait_for(watching, PROMPT_S)
        await asyncio.wait_for(ranks.members[1].process.wait(), PROMPT_S)
        with pytest.raises(TrainingError, match=r"rank 0 of 2 is gone \(signal 9\)"):
            await step(ranks, 0)


async def test_what_all_ranks_refuse_alike_leaves_the_group_in_order(tmp_path: Path) -> None:
    async with group(tmp_path) as ranks:
        with pytest.raises(TrainingError, match="a bad batch"):
            await step(ranks, 2)
        with pytest.raises(StorageError, match="disk of rank 1"):
            await step(ranks, 6)
        assert (await step(ranks, 0)).step == 0


@pytest.mark.parametrize(
    ("number", "message"), [(3, "rank 1 of 2 failed alone: a bad batch"), (4, "rank 1 of 2 failed"), (5, "disagree on loss")]
)
async def test_a_torn_group_is_ended(tmp_path: Path, number: int, message: str) -> None:
    async with group(tmp_path) as ranks:
        with pytest.raises(TrainingError, match=message):
            await step(ranks, number)
        for member in ranks.members:
            await asyncio.wait_for(member.process.wait(), PROMPT_S)
        with pytest.raises(TrainingError, match=message):
            await step(ranks, 0)


async def test_a_rank_that_does_not_start_is_named_and_no_other_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SystemProcess] = []
    real = LightPlatform.spawn

    async def spawn(self: LightPlatform, argv: Sequence[str], **rest: object) -> SystemProcess:
        process = await real(self, argv, **rest)  # pyright: ignore[reportArgumentType]
        started.append(process)
        return process

    monkeypatch.setenv("LIGHT_RANK_FAILS", "1")
    monkeypatch.setattr(LightPlatform, "spawn", spawn)
    with pytest.raises(TrainingError, match=r"rank 1 of 2 is gone[\s\S]*no such device"):
        async with group(tmp_path):
            pass
    assert len(started) == 2
    for process in started:
        await asyncio.wait_for(process.wait(), PROMPT_S)


async def test_world_size_1_is_one_process_without_a_group(tmp_path: Path) -> None:
    rank = await start_ranks(LightPlatform(), TrainerSettings(), tmp_path / "rank.log")
    assert isinstance(rank, RankProcess)
    stopped = asyncio.create_task(rank.watch())
    await asyncio.sleep(0)
    await rank.stop()
    # It was asked to end: nothing is wrong.
    await asyncio.wait_for(stopped, PROMPT_S)
    assert [path.name for path in tmp_path.iterdir()] == ["rank.log"]


def exported(*names: str) -> WeightsExported:
    shards = [ShardFile(name=name, size_bytes=1, checksums={}) for name in names]
    return WeightsExported(manifest=WeightManifest(path="/w", shards=shards), elapsed_ns=1)


async def test_a_disk_that_refuses_one_ranks_files_refuses_the_checkpoint_and_ends_nobody(tmp_path: Path) -> None:
    async with group(tmp_path) as ranks:
        early = await ranks.ask(AwaitCheckpoint(timeout_s=0.0), CheckpointProgress, 60.0)
        assert early.files is None
        with pytest.raises(StorageError, match="the disk is full"):
            await ranks.ask(AwaitCheckpoint(timeout_s=1.0), CheckpointProgress, 60.0)
        assert (await step(ranks, 0)).metrics["loss"] == 0.5


def test_what_ranks_measure_of_themselves_may_differ() -> None:
    """Memory is reported on CUDA alone, and no two ranks use the same."""

    def done(tokens_per_s: float, n_bytes: float) -> StepDone:
        metrics = {"loss": 0.5, "tokens_per_s": tokens_per_s, "peak_memory_bytes": n_bytes}
        return msgspec.structs.replace(STEP_DONE, metrics=metrics)

    both = merged([done(7.0, 100.0), done(5.0, 300.0)])
    assert isinstance(both, StepDone)
    assert both.metrics == {"loss": 0.5, "tokens_per_s": 5.0, "peak_memory_bytes": 300.0}


def test_files_of_all_ranks_are_named_once() -> None:
    both = merged([exported("b"), exported("a")])
    assert isinstance(both, WeightsExported)
    assert [shard.name for shard in both.manifest.shards] == ["a", "b"]
    files = merged([CheckpointProgress(files={"a": (1, "x")}), CheckpointProgress(files={"b": (2, "y")})])
    assert files == CheckpointProgress(files={"a": (1, "x"), "b": (2, "y")})
    writing = merged([CheckpointProgress(files={"a": (1, "x")}), CheckpointProgress(files=None)])
    assert writing == CheckpointProgress(files=None)
    copied = merged([CheckpointCopied(n_bytes=1, elapsed_ns=5), CheckpointCopied(n_bytes=2, elapsed_ns=4)])
    assert copied == CheckpointCopied(n_bytes=3, elapsed_ns=5)


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([ModelLoaded(n_parameters=1), ModelLoaded(n_parameters=2)], "rank 1 answered"),
        ([ModelLoaded(n_parameters=1), CheckpointProgress(files=None)], "differently"),
        ([CheckpointProgress(files={"a": (1, "x")}), CheckpointProgress(files={"a": (1, "x")})], "two ranks wrote"),
    ],
)
def test_contradictions_are_errors(replies: list[Reply], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        merged(replies)
