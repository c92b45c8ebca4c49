"""Logits, log-probabilities and gradients against transformers.

Megatron is in this process (see `in_process`), so pytest does not collect it by name.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from asearch.errors import ConfigError
from asearch.learning.normalisation import TokenWeights
from asearch.models.config import ModelConfig
from asearch.models.weights import checksum, load_weights
from tests.training.in_process import LENGTHS, assert_equal, gradients, learner, sequences
from tests.training.material import model_config, write_model

# What imports megatron comes after the shim that `in_process` installs.
# isort: split
from asearch.training.attention import packed_layout
from asearch.training.export import export_weights
from asearch.training.microbatch import Known, micro_batches
from asearch.training.model import transformer_config
from asearch.training.settings import TrainerSettings

TOLERANCE = 1e-4
VARIANTS = [
    ("Qwen2ForCausalLM", True),
    ("Qwen2ForCausalLM", False),
    ("Qwen3ForCausalLM", True),
    ("Qwen3ForCausalLM", False),
    ("LlamaForCausalLM", False),
    ("Qwen3MoeForCausalLM", False),
]


def transformers_model(folder: Path) -> Any:
    # `from_pretrained` builds on the meta device first, which does not go together with the shim.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
    missing, extra = model.load_state_dict(with_stacked_experts(load_weights(folder)), strict=False)
    assert extra == []
    assert missing == (["lm_head.weight"] if model.config.tie_word_embeddings else [])
    return model


def with_stacked_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers holds experts in memory: one tensor for all of a layer."""
    held = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in sorted({name.partition(".experts.")[0] for name in tensors.keys() - held.keys()}):
        n = sum(name.startswith(f"{layer}.experts.") for name in tensors) // 3
        parts = [[tensors[f"{layer}.experts.{j}.{part}_proj.weight"] for j in range(n)] for part in ("gate", "up", "down")]
        gates_ups = [torch.cat(pair) for pair in zip(parts[0], parts[1], strict=True)]
        held |= {f"{layer}.experts.gate_up_proj": torch.stack(gates_ups), f"{layer}.experts.down_proj": torch.stack(parts[2])}
    return held


@pytest.mark.parametrize(("architecture", "tied"), VARIANTS)
def test_parity_with_transformers_and_bitwise_round_trip(architecture: str, tied: bool, tmp_path: Path) -> None:
    config = model_config(architecture, tied)
    source = write_model(tmp_path / "hf", config)
    built = learner(source)
    reference = transformers_model(source)
    chosen = sequences(LENGTHS, config.vocab_size)

    ids = [torch.from_numpy(s.ids_T) for s in chosen]
    with torch.no_grad():
        logits = built.module(torch.cat(ids), packed_layout(LENGTHS), torch.arange(sum(LENGTHS)))
        expected = [reference(x[None]).logits[0] for x in ids]
    assert (logits - torch.cat(expected)).abs().max() < TOLERANCE

    weights = TokenWeights([1.0] * len(chosen), sum(len(s.trained_N) for s in chosen))
    packed = micro_batches(chosen, [1.0] * len(chosen), weights, token_budget=64)
    logprobs = {}
    for batch, found in zip(packed, built.logprobs(packed), strict=True):
        for number in batch.episode_N.unique().tolist():
            logprobs[number] = found[batch.episode_N == number]
    for number, (s, row) in enumerate(zip(chosen, expected, strict=True)):
        right = torch.log_softmax(row, -1)[s.trained_N - 1, s.ids_T[s.trained_N]]
        assert (logprobs[number] - right).abs().max() < TOLERANCE

    manifest = export_weights(built, tmp_path / "out", fsync=True)
    original, exported = load_weights(source), load_weights(tmp_path / "out", ModelConfig.load(tmp_path / "out"))
    assert_equal(original, exported)
    assert {k: v for shard in manifest.shards for k, v in shard.checksums.items()} == {
        k: checksum(v) for k, v in original.items()
    }
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out.partial").exists()


def test_experts_are_not_spread_over_tensor_parallel_ranks() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.tensor_parallel must be 1 for a model with experts"):
        transformer_config(model_config("Qwen3MoeForCausalLM"), TrainerSettings(tensor_parallel=2))


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM"])
def test_gradients_match_transformers(architecture: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, model_config(architecture))
    built = learner(folder, objective="sft")
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    total = sum(len(s.trained_N) for s in chosen)
    built.accumulate(micro_batches(chosen, [1.0] * len(chosen), TokenWeights([1.0] * len(chosen), total), 64))

    reference = transformers_model(folder)
    loss = torch.zeros(())
    for s in chosen:
        rows = torch.log_softmax(reference(torch.from_numpy(s.ids_T)[None]).logits[0], -1)
        loss = loss - rows[s.trained_N - 1, s.ids_T[s.trained_N]].sum() / total
    loss.backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    found = with_stacked_experts(gradients(built))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() < 1e-5, name


def test_policy_gradient_matches_a_padded_reference(folder: Path) -> None:
    built = learner(folder, clip_low=0.1, clip_high=0.2)
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    advantages = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.3]
    weights = TokenWeights([1.0 / len(s.trained_N) for s in chosen], len(chosen))
    proximal = [torch.from_numpy(s.behaviour_N) + 0.1 * torch.randn(len(s.trained_N)) for s in chosen]
    built.accumulate(micro_batches(chosen, advantages, weights, 64, Known(proximal=proximal)))

    reference = transformers_model(folder)
    loss = torch.zeros(())
    for s, advantage, prox in zip(chosen, advantages, proximal, strict=True):
        rows = torch.log_softmax(reference(torch.from_numpy(s.ids_T)[None]).logits[0], -1)
        ratio = (rows[s.trained_N - 1, s.ids_T[s.trained_N]] - prox).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage)
        loss = loss - ((prox - torch.from_numpy(s.behaviour_N)).exp() * surrogate).mean() / len(chosen)
    loss.backward()
    for name, p in reference.named_parameters():
        assert (gradients(built)[name] - p.grad).abs().max() < 1e-5, name
