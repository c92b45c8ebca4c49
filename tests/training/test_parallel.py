"""Groups of ranks train as one rank does, whatever they share: one start of each group for several layouts."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.platform import SystemPlatform
from actors.runtime.rank_group import start_ranks
from actors.runtime.ranks import Rank
from asearch.errors import TrainingError
from asearch.models.weights import checksum, load_weights
from asearch.training.settings import TrainerSettings
from schemas.local import ExportWeights, LoadModel, ModelLoaded, StepDone, TrainEpisode, TrainGroup, TrainStep, WeightsExported
from schemas.records import Version
from tests.training.material import model_config, random_groups, segment, write_model
from tests.training.parity import TIMEOUT_S, Run, assert_same, trained
from tests.training.state_moves import export, load, restore, save, train

PAIRS = {
    "tensor": {"tensor_parallel": 2},
    "pipeline": {"pipeline_parallel": 2},
    "context": {"context_parallel": 2},
    "data": {"data_parallel": 2},
    "data, plain optimizer": {"data_parallel": 2, "distributed_optimizer": False},
}
FOURS = {
    "data x tensor": {"data_parallel": 2, "tensor_parallel": 2},
    "tensor x pipeline": {"tensor_parallel": 2, "pipeline_parallel": 2},
    "tensor x context": {"tensor_parallel": 2, "context_parallel": 2},
    "pipeline x context": {"pipeline_parallel": 2, "context_parallel": 2},
    "data x pipeline": {"data_parallel": 2, "pipeline_parallel": 2},
    "data x context": {"data_parallel": 2, "context_parallel": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "minibatches": {"minibatches": 2, "normalisation": "episode"},
    "unclipped": {"clip_grad": 0.0},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "sequences": {
        "objective": "gspo",
        "clip_high": 0.3,
        "rejection": "geometric",
        "rejection_high": 1.3,
        "kl_coefficient": 0.1,
        "entropy_coefficient": 0.05,
        "normalisation": "constant",
        "minibatches": 2,
    },
    "critic": {
        "objective": "ppo",
        "advantage": "gae",
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "critic_lr": 1e-3,
        # A value that has moved by just the bound may be on either side of it.
        "value_clip": 0.0,
        "minibatches": 2,
    },
}
"""`sequences` has ratios and bounds of whole segments, a reference model, and the entropy in the loss."""


def folders(root: Path) -> dict[str, Path]:
    """A tied model whose vocabulary has an odd size, and one that is not tied, with norms of queries and keys."""
    return {
        "tied": write_model(root / "tied", model_config()),
        "untied": write_model(root / "untied", model_config("Qwen3ForCausalLM", tied=False)),
    }


def batches(n: int) -> list[Any]:
    # The last has one sequence with a signal: fewer than there are replicas.
    few = random_groups(1, 2, (5, 9), 67, seed=99)
    return [*(random_groups(3, 4, (5, 40), 67, seed=i) for i in range(n - 1)), few]


async def with_ranks(settings: TrainerSettings, log: Path, use: Any) -> Any:
    rank = await start_ranks(SystemPlatform(), settings, log)
    try:
        return await use(rank)
    finally:
        await rank.stop()


async def state_moves(rank: Rank, folder: Path, root: Path, settings: dict[str, Any]) -> None:
    """What `data` exports is what it loaded; its checkpoint goes on under `tensor`, which exports the same and trains alike."""
    root.mkdir()
    await load(rank, folder, **(PAIRS["data"] | settings))
    loaded = await export(rank, root / "loaded")
    assert loaded == {name: checksum(tensor) for name, tensor in load_weights(folder).items()}
    await train(rank, 0, 2)
    await save(rank, root / "checkpoint")
    saved, found = await export(rank, root / "saved"), await train(rank, 2, 2)
    assert saved != loaded
    await load(rank, folder, **(PAIRS["tensor"] | settings))
    await restore(rank, root / "checkpoint")
    assert await export(rank, root / "restored") == saved
    assert await train(rank, 2, 2) == pytest.approx(found, abs=2e-6)


def test_two_ranks_agree_in_layouts_that_share_nothing(tmp_path: Path) -> None:
    """Tensor and sequence parallel against data parallel, over one start of the processes."""
    folder = write_model(tmp_path / "hf", model_config())

    async def use(rank: Rank) -> None:
        whole = await trained(rank, folder, batches(4), **PAIRS["data"])
        shared = await trained(rank, folder, batches(4), **PAIRS["tensor"])
        assert_same(shared, whole)
        await state_moves(rank, folder, tmp_path / "policy", {})
        # The loss is the mean of the advantages, so it says what the critic's values are.
        await state_moves(rank, folder, tmp_path / "critic", VARIANTS["critic"] | {"normalise_advantages": False})
        command = LoadModel(model_dir=str(folder), settings=b'{"tensor_parallel": 4}', seed=0)
        with pytest.raises(TrainingError, match="are 4 ranks; there are 2"):
            await rank.ask(command, ModelLoaded, TIMEOUT_S)
        # All ranks have refused alike, so the group goes on.
        by_data = await trained(rank, folder, batches(3), **(PAIRS["data"] | VARIANTS["sequences"]))
        by_tensor = await trained(rank, folder, batches(3), **(PAIRS["tensor"] | VARIANTS["sequences"]))
        assert_same(by_tensor, by_data)
        assert by_data.metric("kl_reference")[1] > 0
        assert 0 < by_data.metric("rejected_fraction")[1] < 1

    asyncio.run(with_ranks(TrainerSettings(tensor_parallel=2), tmp_path / "rank.log", use))


@pytest.mark.slow
def test_what_is_not_finite_on_one_replica_updates_no_rank(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", model_config())
    good = random_groups(2, 4, (5, 12), 67, seed=5)
    # Its behaviour weight overflows; whichever replica takes it, the others have none of it.
    bad_ones = [
        TrainEpisode(episode=f"{r}", reward=r, segments=[segment("s", [1, 2, 3], [0, 1, 1], [0.0, -200.0, -200.0])])
        for r in (0.0, 1.0)
    ]
    bad = TrainStep(step=1, lineage=0, groups=[good[0], TrainGroup(group="bad", episodes=bad_ones)], max_staleness=99)

    async def weights(rank: Rank, name: str) -> dict[str, str]:
        command = ExportWeights(path=str(tmp_path / name), version=Version(lineage=0, step=1))
        manifest = (await rank.ask(command, WeightsExported, TIMEOUT_S)).manifest
        return {name: digest for shard in manifest.shards for name, digest in shard.checksums.items()}

    async def use(rank: Rank) -> None:
        for layout in PAIRS.values():
            for minibatches in (1, 2):
                await trained(rank, folder, [good], behaviour_cap=0.0, minibatches=minibatches, **layout)
                before = await weights(rank, "before")
                with pytest.raises(TrainingError, match="not finite"):
                    await rank.ask(bad, StepDone, TIMEOUT_S)
                assert await weights(rank, "after") == before
                assert len(before) > 10

    asyncio.run(with_ranks(TrainerSettings(data_parallel=2), tmp_path / "rank.log", use))


@pytest.mark.slow
def test_half_precision_follows_one_rank(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", model_config())

    async def alone(rank: Rank) -> Run:
        return await trained(rank, folder, batches(4))

    async def use(rank: Rank) -> list[Run]:
        return [await trained(rank, folder, batches(4), precision="bf16", **layout) for layout in PAIRS.values()]

    expected = asyncio.run(with_ranks(TrainerSettings(), tmp_path / "rank.log", alone))
    for found in asyncio.run(with_ranks(TrainerSettings(data_parallel=2), tmp_path / "rank.log", use)):
        assert_same(found, expected, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("layouts", [PAIRS, FOURS], ids=["two ranks", "four ranks"])
def test_a_group_trains_as_one_rank_does(tmp_path: Path, layouts: dict[str, dict[str, Any]]) -> None:
    models = folders(tmp_path)
    variants = {"plain": {}, "minibatches": VARIANTS["minibatches"]} if layouts is FOURS else VARIANTS

    async def every(rank: Rank, layout: dict[str, Any]) -> dict[tuple[str, str], Run]:
        return {
            (model, variant): await trained(rank, folder, batches(9), **(settings | layout))
            for model, folder in models.items()
            for variant, settings in variants.items()
        }

    async def all_layouts(rank: Rank) -> dict[str, dict[tuple[str, str], Run]]:
        return {name: await every(rank, layout) for name, layout in layouts.items()}

    def run(settings: TrainerSettings, use: Any) -> Any:
        use_it: Coroutine[Any, Any, Any] = with_ranks(settings, tmp_path / "rank.log", use)
        return asyncio.run(use_it)

    async def alone(rank: Rank) -> dict[tuple[str, str], Run]:
        return await every(rank, {})

    expected = run(TrainerSettings(), alone)
    found = run(TrainerSettings(**next(iter(layouts.values()))), all_layouts)
    for layout, runs in found.items():
        for which, expected_run in expected.items():
            worst = max(abs(a - b) for a, b in zip(runs[which].metric("loss"), expected_run.metric("loss"), strict=True))
            norm = max(abs(a - b) for a, b in zip(runs[which].metric("grad_norm"), expected_run.metric("grad_norm"), strict=True))
            tokens = max(abs(a - b).max() for a, b in zip(runs[which].logprobs, expected_run.logprobs, strict=True))
            print(f"{layout:24} {' '.join(which):20} loss {worst:.1e}, gradient norm {norm:.1e}, log-probabilities {tokens:.1e}")
            assert_same(runs[which], expected_run)
