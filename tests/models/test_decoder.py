"""The decoder against the reference implementation, and against itself with other batching."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from asearch.errors import InputError
from asearch.models.config import ModelConfig
from asearch.models.decoder import Decoder
from asearch.models.kv_cache import KvCache
from asearch.models.weights import load_weights
from models.models_for_tests import VOCAB, random_tensors, small_config, write_model

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHAPES = {
    "qwen2-untied": small_config("Qwen2ForCausalLM", tied=False),
    "qwen2-tied": small_config("Qwen2ForCausalLM", tied=True),
    "qwen3-untied": small_config("Qwen3ForCausalLM", tied=False, rope_theta=1e6),
    "qwen3-tied": small_config("Qwen3ForCausalLM", tied=True),
    "qwen3-bias": small_config("Qwen3ForCausalLM", tied=True, attention_bias=True),
    "llama-untied": small_config("LlamaForCausalLM", tied=False, head_dim=16),
    "llama-tied-bias": small_config("LlamaForCausalLM", tied=True, attention_bias=True),
    "llama3-rope": small_config("LlamaForCausalLM", rope_scaling=LLAMA3, rope_theta=500.0, head_dim=32),
    "qwen3-moe": small_config("Qwen3MoeForCausalLM", tied=False, **EXPERTS, norm_topk_prob=True),
    "qwen3-moe-plain": small_config("Qwen3MoeForCausalLM", tied=True, **EXPERTS, norm_topk_prob=False),
    "qwen3-no-groups": small_config("Qwen3ForCausalLM", num_key_value_heads=4, head_dim=16),
}


def reference(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)


@pytest.mark.parametrize("name", SHAPES)
def test_parity_with_transformers(tmp_path: Path, name: str) -> None:
    config = SHAPES[name]
    write_model(tmp_path, config, seed=1)
    assert ModelConfig.load(tmp_path) == config
    decoder = Decoder.from_tensors(config, load_weights(tmp_path, config), 128)
    cache = KvCache(config, 3, 128)
    ids = torch.randint(0, VOCAB, (100,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = reference(tmp_path, ids)
    got = [decoder.prefill(cache, [(1, 0, ids[:37])])[0], decoder.prefill(cache, [(1, 37, ids[37:60])])[0]]
    got += [decoder.decode(cache, [1], [ids[i]], [i])[0] for i in range(60, 100)]
    ours = torch.log_softmax(torch.stack(got), -1)
    assert (ours - expected[[36, *range(59, 100)]]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2, 3], [5, 1, 0], [7]])
def test_rows_do_not_depend_on_each_other(rows: list[int]) -> None:
    """Dense, scattered and gathered rows, of unequal lengths, give what a row alone gives."""
    config = small_config()
    decoder = Decoder.from_tensors(config, random_tensors(config, 3), 64)
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (9, 30, 17)][: len(rows)]
    cache = KvCache(config, 8, 64)
    first = decoder.prefill(cache, [(row, 0, ids) for row, ids in zip(rows, prompts, strict=True)])
    second = decoder.decode(cache, rows, [5] * len(rows), [len(ids) for ids in prompts])
    for i, ids in enumerate(prompts):
        alone = KvCache(config, 1, 64)
        assert (decoder.prefill(alone, [(0, 0, ids)])[0] - first[i]).abs().max() <= TOLERANCE
        assert (decoder.decode(alone, [0], [5], [len(ids)])[0] - second[i]).abs().max() <= TOLERANCE


def test_copied_and_swapped_rows() -> None:
    config = small_config()
    decoder = Decoder.from_tensors(config, random_tensors(config, 3), 64)
    cache = KvCache(config, 4, 64)
    a, b = list(range(20)), list(range(100, 130))
    decoder.prefill(cache, [(0, 0, a), (3, 0, b)])
    expected = decoder.decode(cache, [0, 3], [1, 1], [20, 30])
    cache.swap(0, 3, 31)
    cache.copy_prefix(3, 1, 20)
    got = decoder.decode(cache, [1, 0], [1, 1], [20, 30])
    assert (got - expected).abs().max() <= TOLERANCE


def test_weights_that_are_not_finite_are_refused() -> None:
    config = small_config()
    tensors = random_tensors(config, 0)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match="up_proj"):
        Decoder.from_tensors(config, tensors, 16)
