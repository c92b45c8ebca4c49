"""A fresh, randomly initialised policy as a Hugging Face folder: config.json, model.safetensors and the tokenizer's files."""

import math
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer

from asearch.models.config import ModelConfig
from asearch.models.tokenizer_builder import END_OF_TEXT, save_tokenizer
from asearch.models.weights import save_weights


def small_config(
    tokenizer: Tokenizer,
    *,
    architecture: str = "Qwen3ForCausalLM",
    n_layers: int = 2,
    hidden_size: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 4,
    head_dim: int = 32,
    intermediate_size: int = 128,
    max_positions: int = 2048,
    rope_theta: float = 1000.0,
) -> ModelConfig:
    """The configuration of a small model with tied embeddings for `tokenizer`; sizes are counts of elements."""
    eos = tokenizer.token_to_id(END_OF_TEXT)
    return ModelConfig(
        architecture=architecture,
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rope_theta=rope_theta,
        rms_norm_eps=1e-6,
        tied=True,
        qkv_bias=architecture == "Qwen2ForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        eos_ids=() if eos is None else (eos,),
    )


def initialise(folder: Path, tokenizer: Tokenizer, config: ModelConfig, seed: int) -> None:
    """Write a model with random weights: normal with standard deviation 1/√hidden_size, norms 1, biases 0.

    That is larger than the 0.02 of large models on purpose: words must stay distinguishable under the high learning rate of a
    short warm start, or copying emerges several times later. The projections into the residual stream are divided by
    √(2·layers), after GPT-2.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in config.shapes().items():
        if name.endswith("norm.weight"):
            tensors[name] = torch.ones(shape)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        else:
            scale = math.sqrt(2 * config.n_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            tensors[name] = torch.randn(shape, generator=generator) * (config.hidden_size**-0.5 / scale)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder, config.max_positions)
    (folder / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config.to_hf())) + b"\n")
    save_weights(folder, tensors)
