"""Supervised steps before reinforcement learning, by a rank of our own: the same trainer, the objective `sft`."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from actors.runtime.platform import Platform
from actors.runtime.rank_group import start_ranks
from asearch.configuration.settings import Settings
from schemas.local import (
    ExportWeights,
    LoadModel,
    ModelLoaded,
    StepDone,
    TrainEpisode,
    TrainGroup,
    TrainStep,
    WeightsExported,
)
from schemas.records import Segment, Version

STEP_TIMEOUT_S = 600.0
Progress = Callable[[int, int, dict[str, float]], None]
"""Called with steps done, steps in all, and the metrics of the last step."""


async def warm_start(
    platform: Platform,
    settings: Settings,
    fresh_dir: Path,
    target_dir: Path,
    batches: Iterator[list[Segment]],
    log_path: Path,
    progress: Progress,
) -> None:
    """Train the fresh model on batches of demonstrations and write it to `target_dir`. Batches are made while a step runs."""
    rank = await start_ranks(platform, settings.warmstart.trainer, log_path)
    warm = settings.warmstart
    try:
        command = LoadModel(model_dir=str(fresh_dir), settings=msgspec.json.encode(warm.trainer), seed=settings.seed)
        await rank.ask(command, ModelLoaded, STEP_TIMEOUT_S)
        batch = await asyncio.to_thread(next, batches)
        for step in range(warm.steps):
            following = asyncio.create_task(asyncio.to_thread(next, batches, list[Segment]()))
            done = await rank.ask(_step(step, batch), StepDone, STEP_TIMEOUT_S)
            progress(step + 1, warm.steps, done.metrics)
            batch = await following
        version = Version(lineage=0, step=0)
        await rank.ask(ExportWeights(path=str(target_dir), version=version), WeightsExported, STEP_TIMEOUT_S)
    finally:
        await rank.stop()


def _step(step: int, segments: list[Segment]) -> TrainStep:
    episodes = [TrainEpisode(episode=segment.id, reward=1.0, segments=[segment]) for segment in segments]
    return TrainStep(step=step, lineage=0, groups=[TrainGroup(group="demonstrations", episodes=episodes)])
