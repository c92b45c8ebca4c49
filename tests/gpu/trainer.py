"""The trainer's rank on this machine's device: speed of a step, parity with the CPU path, weights and checkpoint out and in."""

import contextlib
import os
import statistics
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actors.runtime.platform import SystemPlatform
from actors.runtime.ranks import RankProcess
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
    TrainGroup,
    TrainStep,
    WeightsExported,
)
from schemas.records import Version
from tests.gpu.checking import CPU, CUDA, FailedError, Place, at_most, missing
from tests.training.material import model_config, random_groups, write_model

TIMEOUT_S = 900.0
QWEN25_1B5 = {
    "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "n_layers": 28, "n_heads": 12, "n_kv_heads": 2,
    "head_dim": 128, "max_positions": 32_768,
}  # fmt: skip
TINY = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 48,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
}
SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2,
    "head_dim": 32,
}  # fmt: skip
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "H20": 148.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bf16, by a part of the device's name; the first that fits counts."""
LOGPROB_BOUND, LOSS_BOUND = 1e-3, 1e-4


@contextlib.asynccontextmanager
async def rank_on(place: Place, device: str) -> AsyncGenerator[RankProcess]:
    """A rank process that sees the GPU, or none."""
    env = dict(os.environ) | (place.hidden_gpu if device == CPU else {})
    rank = await RankProcess.start(SystemPlatform(), place.folder / f"rank-{device}.log", env)
    try:
        found = rank.ready.device if rank.ready else ""
        if not found.startswith(device):
            raise FailedError(f"the rank runs on {found}, not on {device}")
        yield rank
    finally:
        await rank.stop()


async def load(rank: RankProcess, folder: Path, **settings: Any) -> int:
    """Load a model folder; how many parameters it has."""
    encoded = msgspec.json.encode(TrainerSettings(**settings))
    loaded = await rank.ask(LoadModel(model_dir=str(folder), settings=encoded, seed=1), ModelLoaded, TIMEOUT_S)
    return loaded.n_parameters


async def step(rank: RankProcess, number: int, groups: list[TrainGroup]) -> StepDone:
    """One update, with all its log-probabilities."""
    command = TrainStep(step=number, lineage=0, groups=groups, max_staleness=99, max_recorded_tokens=1 << 20)
    return await rank.ask(command, StepDone, TIMEOUT_S)


# --- speed ---


async def speed(place: Place) -> dict[str, Any]:
    """Tokens per second, model FLOPs utilisation and memory of updates in bf16 on a model of Qwen2.5-1.5B's shape.

    FLOPs per token, forward and backward: 6 · (parameters of the layers' matrices + share of loss tokens · V · H), and for
    causal attention 6 · layers · heads · head width · T, with T the mean length that a token's sequence has. Nothing is
    counted twice for recomputation; embedding look-ups count nothing.
    """
    sizes = TINY if place.is_tiny else QWEN25_1B5
    config = model_config("Qwen2ForCausalLM", **sizes)
    folder = write_model(place.folder / "model", config, scale=0.05)
    n_groups, n_members, lengths = (2, 2, (16, 48)) if place.is_tiny else (8, 4, (512, 2048))
    n_steps = 2 if place.is_tiny else 6
    async with rank_on(place, place.device) as rank:
        budget = 128 if place.is_tiny else 8192
        n_parameters = await load(rank, folder, precision="bf16", token_budget=budget, lr=1e-6)
        done, speeds, flops = None, [], 0.0
        for number in range(n_steps + 1):
            groups = random_groups(n_groups, n_members, lengths, sizes["vocab_size"], seed=number)
            begun_s = time.perf_counter()
            done = await step(rank, number, groups)
            elapsed_s = time.perf_counter() - begun_s
            if number:  # the first compiles and allocates
                speeds.append(done.metrics["n_tokens_forwarded"] / elapsed_s)
                flops = _flops_per_token(config, groups, done)
        assert done is not None
    tokens_per_s = statistics.median(speeds)
    name, peak = _device_name(place), place.peak_tflops
    peak = peak or next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
    return {
        "n_parameters": n_parameters,
        "precision": "bf16",
        "tokens_per_step": done.metrics["n_tokens_forwarded"],
        "tokens_per_s": tokens_per_s,
        "tflops": tokens_per_s * flops * 1e-12,
        "peak_tflops": peak,
        "mfu": tokens_per_s * flops * 1e-12 / peak if peak else None,
        "peak_memory_bytes": done.metrics.get("peak_memory_bytes"),
        "loss": done.metrics["loss"],
    }


def _flops_per_token(config: Any, groups: list[TrainGroup], done: StepDone) -> float:
    shapes = config.shapes()
    matrices = sum(int(np.prod(shape)) for name, shape in shapes.items() if ".layers." in name and len(shape) == 2)
    lengths = np.array([s.columns["ids"].shape[0] for g in groups for e in g.episodes for s in e.segments], dtype=float)
    share = done.n_tokens_trained / done.metrics["n_tokens_forwarded"]
    attention = config.n_layers * config.n_heads * config.head_dim * float((lengths**2).sum() / lengths.sum())
    return 6.0 * (matrices + share * config.vocab_size * config.hidden_size + attention)


def _device_name(place: Place) -> str:
    import torch

    return torch.cuda.get_device_name() if place.device == CUDA else "CPU"


# --- parity ---


async def parity(place: Place) -> dict[str, Any]:
    """Three updates of small fp32 models: losses, gradient norms and every token's log-probability as on the CPU path."""
    found: dict[str, Any] = {}
    for architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        sizes = (TINY if place.is_tiny else SMALL) | {"max_positions": 512}
        folder = write_model(place.folder / f"parity-{architecture}", model_config(architecture, **sizes))
        batches = [random_groups(3, 4, (8, 200), sizes["vocab_size"], seed=seed) for seed in range(3)]
        expected = await _trained(place, CPU, folder, batches)
        for engine in _transformer_engine(place):
            ours = await _trained(place, place.device, folder, batches, transformer_engine=engine)
            name = f"{architecture}{', Transformer Engine' if engine else ''}"
            found[name] = {
                "loss": at_most(f"{name}: difference of losses", _apart(ours, expected, "loss"), LOSS_BOUND),
                "grad_norm": _apart(ours, expected, "grad_norm"),
                "logprob": at_most(f"{name}: difference of log-probabilities", _logprobs_apart(ours, expected), LOGPROB_BOUND),
            }
    return found


def _transformer_engine(place: Place) -> list[bool]:
    return [False, True] if place.device == CUDA and not missing(["transformer_engine"]) else [False]


async def _trained(place: Place, device: str, folder: Path, batches: list[list[TrainGroup]], **settings: Any) -> list[StepDone]:
    async with rank_on(place, device) as rank:
        await load(rank, folder, token_budget=512, lr=1e-3, **settings)
        return [await step(rank, number, groups) for number, groups in enumerate(batches)]


def _apart(ours: list[StepDone], theirs: list[StepDone], metric: str) -> float:
    return max(abs(a.metrics[metric] - b.metrics[metric]) for a, b in zip(ours, theirs, strict=True))


def _logprobs_apart(ours: list[StepDone], theirs: list[StepDone]) -> float:
    return float(max(np.abs(_logprobs(a) - _logprobs(b)).max() for a, b in zip(ours, theirs, strict=True)))


def _logprobs(done: StepDone) -> Any:
    return np.concatenate([np.frombuffer(s.columns["logprobs"].data, "<f4") for e in done.episodes for s in e.segments])


# --- weights and checkpoints ---


async def round_trip(place: Place) -> dict[str, Any]:
    """Weights exported after an update, loaded and exported again are the same bytes; so are those of a restored checkpoint."""
    sizes = TINY if place.is_tiny else SMALL
    folder = write_model(place.folder / "export", model_config("Qwen3ForCausalLM", **sizes))
    groups = random_groups(2, 4, (8, 60), sizes["vocab_size"])
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        settings = {"precision": precision, "token_budget": 512}
        async with rank_on(place, place.device) as rank:
            await load(rank, folder, **settings)
            initial = await _exported(rank, place.folder / "initial")
            await step(rank, 0, groups)
            trained = await _exported(rank, place.folder / "trained")
            saved = place.folder / f"checkpoint-{precision}"
            saved.mkdir()
            await rank.ask(SaveCheckpoint(path=str(saved)), CheckpointCopied, TIMEOUT_S)
            written = await rank.ask(AwaitCheckpoint(timeout_s=TIMEOUT_S), CheckpointProgress, TIMEOUT_S)
            # More steps, so that going back is seen.
            await step(rank, 1, groups)
            await load(rank, place.folder / "trained", **settings)
            again = await _exported(rank, place.folder / "again")
            await load(rank, folder, **settings)
            await rank.ask(RestoreCheckpoint(path=str(saved)), CheckpointRestored, TIMEOUT_S)
            restored = await _exported(rank, place.folder / "restored")
        if trained == initial:
            raise FailedError(f"{precision}: the update changed no weight")
        if again != trained:
            raise FailedError(f"{precision}: weights that were exported, loaded and exported again are other ones")
        if restored != trained:
            raise FailedError(f"{precision}: the restored checkpoint has other weights than it was taken of")
        found[precision] = {"n_tensors": len(trained), "n_checkpoint_files": len(written.files or {})}
    return found


async def _exported(rank: RankProcess, path: Path) -> dict[str, str]:
    """Checksums by tensor of the weights as they are now."""
    command = ExportWeights(path=str(path), version=Version(lineage=0, step=0), fsync=False)
    manifest = (await rank.ask(command, WeightsExported, TIMEOUT_S)).manifest
    return {name: value for shard in manifest.shards for name, value in shard.checksums.items()}
