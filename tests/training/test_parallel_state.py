"""Weights and state of a trainer of two ranks: what it exports, and what becomes of its checkpoints on other ranks."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.runtime.platform import SystemPlatform
from actors.runtime.rank_group import start_ranks
from actors.runtime.ranks import Rank
from asearch.models.config import ModelConfig
from asearch.models.weights import load_weights
from asearch.training.settings import TrainerSettings
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
from tests.training.material import model_config, random_groups, write_model

TIMEOUT_S = 120.0
SETTINGS: dict[str, Any] = {"lr": 3e-3, "token_budget": 128, "advantage": "grpo_mean", "weight_decay": 0.01}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_parallel": 2},
    "pipeline": {"pipeline_parallel": 2},
    "data": {"data_parallel": 2},
    "data, state everywhere": {"data_parallel": 2, "distributed_optimizer": False},
    "context": {"context_parallel": 2},
}
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ranks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Rank, Rank]]:
    """One rank alone, and two."""
    logs = tmp_path_factory.mktemp("logs")
    platform = SystemPlatform()
    one = await start_ranks(platform, TrainerSettings(), logs / "one.log")
    two = await start_ranks(platform, TrainerSettings(tensor_parallel=2), logs / "two.log")
    yield one, two
    await one.stop()
    await two.stop()


async def load(rank: Rank, folder: Path, **settings: Any) -> None:
    command = LoadModel(model_dir=str(folder), settings=json.dumps(SETTINGS | settings).encode(), seed=1)
    await rank.ask(command, ModelLoaded, TIMEOUT_S)


async def train(rank: Rank, first: int, n: int) -> list[float]:
    losses: list[float] = []
    for number in range(first, first + n):
        groups = random_groups(3, 4, (5, 30), 67, seed=number)
        step = TrainStep(step=number, lineage=0, groups=groups, max_staleness=99)
        losses.append((await rank.ask(step, StepDone, TIMEOUT_S)).metrics["loss"])
    return losses


async def export(rank: Rank, path: Path) -> dict[str, str]:
    exported = await rank.ask(ExportWeights(path=str(path), version=Version(lineage=0, step=1)), WeightsExported, TIMEOUT_S)
    return {name: digest for shard in exported.manifest.shards for name, digest in shard.checksums.items()}


async def save(rank: Rank, folder: Path) -> None:
    folder.mkdir()
    await rank.ask(SaveCheckpoint(path=str(folder)), CheckpointCopied, TIMEOUT_S)
    done = await rank.ask(AwaitCheckpoint(timeout_s=60.0), CheckpointProgress, TIMEOUT_S)
    assert done.files is not None
    assert sorted(done.files) == sorted(path.name for path in folder.iterdir())


async def restore(rank: Rank, folder: Path) -> None:
    await rank.ask(RestoreCheckpoint(path=str(folder)), CheckpointRestored, TIMEOUT_S)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
async def test_what_two_ranks_export_is_what_they_loaded(
    ranks: tuple[Rank, Rank], tmp_path: Path, layout: str, architecture: str
) -> None:
    for tied in (True, False):
        folder = write_model(tmp_path / f"hf{tied}", model_config(architecture, tied))
        for rank, name, settings in ((ranks[0], "one", {}), (ranks[1], "two", LAYOUTS[layout])):
            await load(rank, folder, **settings)
            await export(rank, tmp_path / name)
        manifest = load_weights(tmp_path / "two", ModelConfig.load(tmp_path / "two"))
        expected = load_weights(tmp_path / "one")
        assert all(manifest[name].equal(expected[name]) for name in expected)
        sizes = [path.stat().st_size for path in (tmp_path / "two").glob("*.safetensors")]
        assert len(sizes) == 2
        assert max(sizes) < 0.7 * sum(sizes)
        assert not list((tmp_path / "two").glob(".rank*"))
