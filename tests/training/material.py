"""Small models and segments for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asearch.models.config import Experts, ModelConfig
from asearch.models.rope import Llama3Scaling
from asearch.models.weights import save_weights
from schemas.local import TrainEpisode, TrainGroup
from schemas.records import Column, Segment, Version, VersionRun

EXPERTS = Experts(n_experts=5, n_active=2, intermediate_size=24, normalised=True)
LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)


def model_config(architecture: str = "Qwen2ForCausalLM", tied: bool = True, **sizes: int) -> ModelConfig:
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    is_llama = architecture == "LlamaForCausalLM"
    fields: dict[str, Any] = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8 if is_qwen2 else 16,
        "max_positions": 512,
    }
    return ModelConfig(
        architecture=architecture,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tied=tied,
        qkv_bias=is_qwen2,
        qk_norm=not is_qwen2 and not is_llama,
        experts=EXPERTS if architecture == "Qwen3MoeForCausalLM" else None,
        rope_scaling=LLAMA3 if is_llama else None,
        **(fields | sizes),
    )


def write_model(folder: Path, config: ModelConfig, seed: int = 0, scale: float = 0.3) -> Path:
    """A folder with random weights, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * scale / (shape[-1] ** 0.5 if len(shape) > 1 else 4.0)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in config.shapes().items()
    }
    save_weights(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def column(dtype: str, values: Any) -> Column:
    array = np.asarray(values).astype("<" + dtype)
    return Column(dtype=dtype, shape=array.shape, data=array.tobytes())


def segment(
    name: str,
    ids: list[int],
    mask: list[int],
    logprobs: list[float] | None = None,
    version: Version = Version(lineage=0, step=0),  # noqa: B008
    versions: list[VersionRun] | None = None,
) -> Segment:
    """A segment whose trained tokens all come from `version`, unless `versions` says otherwise."""
    if versions is None:
        edges = np.flatnonzero(np.diff([0, *mask, 0]))
        pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        versions = [VersionRun(version=version, start=start, end=end) for start, end in pairs]
    columns = {"ids": column("u4", ids), "mask": column("u1", mask)}
    columns["logprobs"] = column("f4", logprobs if logprobs is not None else [0.0] * len(ids))
    return Segment(id=name, n_prompt=1, first_turn=0, last_turn=0, columns=columns, versions=versions)


def random_groups(
    n_groups: int,
    n_members: int,
    lengths: tuple[int, int],
    vocab_size: int,
    seed: int = 0,
    version: Version = Version(lineage=0, step=0),  # noqa: B008
    trained: float = 0.6,
) -> list[TrainGroup]:
    """Groups of one-segment episodes with random ids, masks and behaviour log-probabilities, rewards 0 and 1."""
    rng = np.random.default_rng(seed)
    groups: list[TrainGroup] = []
    for g in range(n_groups):
        episodes: list[TrainEpisode] = []
        for m in range(n_members):
            n = int(rng.integers(*lengths, endpoint=True))
            mask = (rng.random(n) < trained).astype(int)
            mask[0], mask[-1] = 0, 1
            logprobs = (rng.normal(-4.0, 0.3, n) * mask).tolist()
            ids = rng.integers(0, vocab_size, n).tolist()
            part = segment(f"s{g}.{m}", ids, mask.tolist(), logprobs, version)
            episodes.append(TrainEpisode(episode=f"e{g}.{m}", reward=float(m % 2), segments=[part]))
        groups.append(TrainGroup(group=f"g{g}", episodes=episodes))
    return groups
