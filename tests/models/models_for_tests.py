"""Small random models of every supported shape, as Hugging Face folders."""

from pathlib import Path

import msgspec
import torch

from asearch.models.config import ModelConfig
from asearch.models.weights import save_weights

VOCAB = 300


def small_config(architecture: str = "Qwen3ForCausalLM", tied: bool = True, **changes: object) -> ModelConfig:
    raw: dict[str, object] = {
        "architectures": [architecture],
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }
    return ModelConfig.from_hf(raw | changes)


def random_tensors(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights large enough that next-token distributions are far from uniform and differ between seeds."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in config.shapes().items():
        scale = 1.0 if "embed" in name else 0.25
        offset = 1.0 if "norm" in name else 0.0
        tensors[name] = torch.randn(shape, generator=generator) * scale + offset
    return tensors


def write_model(folder: Path, config: ModelConfig, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(msgspec.json.encode(config.to_hf()))
    save_weights(folder, random_tensors(config, seed))
    return folder
