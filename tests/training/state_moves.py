"""Weights and state of a rank or a group, taken from one layout to another, for tests."""

import json
from pathlib import Path
from typing import Any

from actors.runtime.ranks import Rank
from schemas.local import (
    AwaitCheckpoint,
    CheckpointCopied,
    CheckpointProgress,
    CheckpointRestored,
    ExportWeights,
    LoadModel,
    ModelLoaded,
    RestoreCheckpoint,
    SaveCheckpoint,
    StepDone,
    TrainStep,
    WeightsExported,
)
from schemas.records import Version
from tests.training.material import random_groups

TIMEOUT_S = 120.0
SETTINGS: dict[str, Any] = {"lr": 3e-3, "token_budget": 128, "advantage": "grpo_mean", "weight_decay": 0.01}


async def load(rank: Rank, folder: Path, **settings: Any) -> None:
    command = LoadModel(model_dir=str(folder), settings=json.dumps(SETTINGS | settings).encode(), seed=1)
    await rank.ask(command, ModelLoaded, TIMEOUT_S)


async def train(rank: Rank, first: int, n: int) -> list[float]:
    """Loss and mean log-probability of each step from number `first` on; the batch of a number is always the same."""
    found: list[float] = []
    for number in range(first, first + n):
        groups = random_groups(3, 4, (5, 30), 67, seed=number)
        step = TrainStep(step=number, lineage=0, groups=groups, max_staleness=99)
        metrics = (await rank.ask(step, StepDone, TIMEOUT_S)).metrics
        found += [metrics["loss"], metrics["logprob"]]
    return found


async def export(rank: Rank, path: Path) -> dict[str, str]:
    """Checksums of the exported weights by name."""
    command = ExportWeights(path=str(path), version=Version(lineage=0, step=1))
    exported = await rank.ask(command, WeightsExported, TIMEOUT_S)
    return {name: digest for shard in exported.manifest.shards for name, digest in shard.checksums.items()}


async def save(rank: Rank, folder: Path) -> None:
    folder.mkdir()
    await rank.ask(SaveCheckpoint(path=str(folder)), CheckpointCopied, TIMEOUT_S)
    done = await rank.ask(AwaitCheckpoint(timeout_s=60.0), CheckpointProgress, TIMEOUT_S)
    assert done.files is not None
    assert sorted(done.files) == sorted(path.name for path in folder.iterdir())


async def restore(rank: Rank, folder: Path) -> None:
    await rank.ask(RestoreCheckpoint(path=str(folder)), CheckpointRestored, TIMEOUT_S)
