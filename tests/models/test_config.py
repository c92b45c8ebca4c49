from pathlib import Path
from typing import Any

import pytest

from asearch.errors import InputError
from asearch.models.config import ModelConfig
from models.models_for_tests import small_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "LlamaForCausalLM"])
def test_to_hf_round_trips(architecture: str) -> None:
    config = small_config(architecture)
    assert ModelConfig.from_hf(config.to_hf()) == config
    config = small_config(architecture, rope_scaling=LLAMA3, attention_bias=True)
    assert config.rope_scaling is not None
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_rope_theta_in_either_place() -> None:
    assert small_config(rope_theta=5.0).rope_theta == 5.0
    raw = small_config().to_hf()
    del raw["rope_theta"]
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 7.0}
    assert ModelConfig.from_hf(raw).rope_theta == 7.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"], "mlp_bias": True}, "bias in the feed-forward"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [1]}, "with and without experts"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 2}, "with and without experts"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}, "num_experts_per_tok"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor > low_freq_factor"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "multiple"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ModelConfig.from_hf(small_config().to_hf() | changes)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        ModelConfig.load(tmp_path)


def test_ends_of_generation_are_joined(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures":["Qwen2ForCausalLM"],"vocab_size":9,"hidden_size":8,"intermediate_size":8,'
        '"num_hidden_layers":1,"num_attention_heads":2,"eos_token_id":3}'
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id":[4,3]}')
    config = ModelConfig.load(tmp_path)
    assert config.eos_ids == (3, 4)
    assert (config.n_kv_heads, config.head_dim, config.tied) == (2, 4, False)
