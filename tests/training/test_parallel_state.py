"""Weights and state of a trainer of two ranks: what it exports, and what becomes of its checkpoints on other ranks."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.runtime.platform import SystemPlatform
from actors.runtime.rank_group import start_ranks
from actors.runtime.ranks import Rank
from asearch.errors import StorageError, TrainingError
from asearch.models.config import ModelConfig
from asearch.models.weights import load_weights, read_manifest
from asearch.training.settings import TrainerSettings
from schemas.local import LoadModel, ModelLoaded
from tests.training.material import model_config, write_model
from tests.training.state_moves import TIMEOUT_S, export, load, restore, save, train

LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_parallel": 2},
    "pipeline": {"pipeline_parallel": 2},
    "data": {"data_parallel": 2},
    "data, state everywhere": {"data_parallel": 2, "distributed_optimizer": False},
    "context": {"context_parallel": 2},
    "pipeline, half": {"pipeline_parallel": 2, "precision": "bf16"},
    "data, half": {"data_parallel": 2, "precision": "bf16"},
}
FOURS: list[dict[str, Any]] = [
    {"tensor_parallel": 2, "data_parallel": 2},
    {"pipeline_parallel": 2, "tensor_parallel": 2},
    {"data_parallel": 4},
    {"pipeline_parallel": 2, "context_parallel": 2},
]
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


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_what_two_ranks_export_is_what_they_loaded(
    ranks: tuple[Rank, Rank], tmp_path: Path, layout: str, architecture: str
) -> None:
    if architecture == "Qwen3MoeForCausalLM" and "tensor_parallel" in LAYOUTS[layout]:
        pytest.skip("experts are not spread over tensor-parallel ranks")
    precision = {key: value for key, value in LAYOUTS[layout].items() if key == "precision"}
    for tied in (True, False):
        folder = write_model(tmp_path / f"hf{tied}", model_config(architecture, tied))
        for rank, name, settings in ((ranks[0], "one", precision), (ranks[1], "two", LAYOUTS[layout])):
            await load(rank, folder, **settings)
            await export(rank, tmp_path / name)
        manifest = load_weights(tmp_path / "two", ModelConfig.load(tmp_path / "two"))
        expected = load_weights(tmp_path / "one")
        assert all(manifest[name].equal(expected[name]) for name in expected)
        sizes = [path.stat().st_size for path in (tmp_path / "two").glob("*.safetensors")]
        assert len(sizes) == 2
        assert max(sizes) < 0.7 * sum(sizes)
        assert not list((tmp_path / "two").glob(".rank*"))


async def test_a_checkpoint_goes_on_in_any_layout(ranks: tuple[Rank, Rank], tmp_path: Path) -> None:
    """In the layout that it was written in bit for bit; in others from the same weights, with the same losses.

    Every layout writes, then every layout reads all: groups of ranks are laid out anew twice for each and not for each pair.
    """
    folder = write_model(tmp_path / "hf", model_config("Qwen3ForCausalLM", tied=True))
    one, two = ranks
    layouts = {"one": (one, {}), "one, half": (one, {"precision": "bf16"})} | {n: (two, each) for n, each in LAYOUTS.items()}
    after: dict[str, tuple[dict[str, str], list[float], dict[str, str]]] = {}
    for source, (rank, layout) in layouts.items():
        await load(rank, folder, **layout)
        await train(rank, 0, 3)
        saved = await export(rank, tmp_path / "saved")
        await save(rank, tmp_path / source)
        after[source] = (saved, await train(rank, 3, 2), await export(rank, tmp_path / "ended"))
    for target, (rank, layout) in layouts.items():
        for source in layouts:
            half = "half" in source
            if half != ("half" in target):
                continue
            saved, losses, ended = after[source]
            await load(rank, folder, **layout)
            await restore(rank, tmp_path / source)
            assert await export(rank, tmp_path / "restored") == saved, (source, target)
            found = await train(rank, 3, 2)
            worst = max(abs(a - b) for a, b in zip(found, losses, strict=True))
            print(f"{source} -> {target}: losses and log-probabilities differ by {worst:.1e}")
            assert worst <= (5e-3 if half else 2e-6), (source, target)
            if source == target:
                assert found == losses
                assert await export(rank, tmp_path / "again") == ended


async def test_four_ranks_in_two_dimensions(ranks: tuple[Rank, Rank], tmp_path: Path) -> None:
    """Shares of four ranks, and from each of these layouts to the next, which divides otherwise."""
    folder = write_model(tmp_path / "hf", model_config(tied=True))
    original = await exported_by_one(ranks[0], folder, tmp_path)
    four = await start_ranks(SystemPlatform(), TrainerSettings(tensor_parallel=2, data_parallel=2), tmp_path / "four.log")
    try:
        last: list[float] = []
        for number, layout in enumerate(FOURS):
            await load(four, folder, **layout)
            assert await export(four, tmp_path / "fresh") == original
            sizes = [path.stat().st_size for path in (tmp_path / "fresh").glob("*.safetensors")]
            assert len(sizes) == 4
            assert max(sizes) < 0.5 * sum(sizes)
            if number:
                await restore(four, tmp_path / f"checkpoint{number - 1}")
                assert await export(four, tmp_path / "restored") == export_of(tmp_path / f"saved{number - 1}")
                assert await train(four, 2 * number, 1) == pytest.approx(last[:2], abs=2e-6)
                await train(four, 2 * number + 1, 1)
            else:
                await train(four, 0, 2)
            await export(four, tmp_path / f"saved{number}")
            await save(four, tmp_path / f"checkpoint{number}")
            last = await train(four, 2 * number + 2, 1)
    finally:
        await four.stop()


async def exported_by_one(one: Rank, folder: Path, path: Path) -> dict[str, str]:
    await load(one, folder)
    return await export(one, path / "one")


def export_of(folder: Path) -> dict[str, str]:
    return {name: entry.xxh3_128 for name, entry in read_manifest(folder).tensors.items()}


@pytest.mark.parametrize("layout", ["tensor", "pipeline", "data"])
async def test_what_is_wrong_on_one_rank_changes_nothing_on_any(ranks: tuple[Rank, Rank], tmp_path: Path, layout: str) -> None:
    folder = write_model(tmp_path / "hf", model_config())
    _, two = ranks
    await load(two, folder, **LAYOUTS[layout])
    await train(two, 0, 2)
    await save(two, tmp_path / "checkpoint")
    await train(two, 2, 1)
    before = await export(two, tmp_path / "before")
    path = tmp_path / "checkpoint" / "rank1.optimizer.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    with pytest.raises(TrainingError, match=r"rank1\.optimizer\.safetensors is corrupt: the checksum of its part of"):
        await restore(two, tmp_path / "checkpoint")
    path.unlink()
    with pytest.raises(TrainingError, match=r"cannot read .*rank1\.optimizer\.safetensors"):
        await restore(two, tmp_path / "checkpoint")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write weights to"):
        await export(two, tmp_path / "file" / "weights")
    assert await export(two, tmp_path / "after") == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["after", "before", "checkpoint", "file", "hf"]


async def test_experts_are_refused_over_tensor_parallel_ranks(ranks: tuple[Rank, Rank], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", model_config("Qwen3MoeForCausalLM"))
    settings = b'{"tensor_parallel": 2}'
    with pytest.raises(TrainingError, match="for a model with experts"):
        await ranks[1].ask(LoadModel(model_dir=str(folder), settings=settings, seed=0), ModelLoaded, TIMEOUT_S)


async def test_experts_train_alike_on_one_rank_and_on_two(ranks: tuple[Rank, Rank], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", model_config("Qwen3MoeForCausalLM", tied=False))
    one, two = ranks
    await load(one, folder)
    expected = await train(one, 0, 2)
    await save(one, tmp_path / "checkpoint")
    expected += await train(one, 2, 2)
    for layout in ("pipeline", "data", "context"):
        await load(two, folder, **LAYOUTS[layout])
        found = await train(two, 0, 2)
        await restore(two, tmp_path / "checkpoint")
        assert found + await train(two, 2, 2) == pytest.approx(expected, abs=1e-5), layout
