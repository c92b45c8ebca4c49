"""The rank's own layers on another device than the CPU, forward and backward: everything they make themselves is made there."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from asearch.learning.logprobs import token_logprobs
from asearch.learning.normalisation import TokenWeights
from asearch.learning.objectives import LossTokens, objectives, policy_diagnostics, policy_loss
from asearch.models.rope import Rope
from asearch.training.batch import TrainingSequence
from asearch.training.cpu_shim import install_device_shim
from asearch.training.settings import TrainerSettings
from tests.models.one_device import META, OneDevice

install_device_shim()

from asearch.training.attention import PackedAttention  # noqa: E402
from asearch.training.kernels import rms_norm, swiglu  # noqa: E402
from asearch.training.microbatch import MicroBatch, micro_batches  # noqa: E402

NOT_REPEATABLE = {"index_add", "index_add_", "scatter_add", "scatter_add_", "cumsum", "bincount", "histc"}
"""What adds up in an order of its own on a GPU."""


def on_meta() -> MicroBatch:
    sequences = [
        TrainingSequence(np.arange(n), np.arange(1, n), np.zeros(n - 1, np.float32), episode, episode // 2, f"s{episode}")
        for episode, n in enumerate((9, 8, 5, 3))
    ]
    (batch,) = micro_batches(sequences, [1.0, -1.0, 1.0, -1.0], TokenWeights([1.0] * 4, 21), 64)
    return batch.on(torch.device(META))


def test_layers_and_attention_stay_on_their_device() -> None:
    with OneDevice() as seen:
        batch = on_meta()
        n = batch.ids_T.shape[0]
        x = torch.empty(n, 32, device=META, requires_grad=True)
        weight = torch.empty(32, device=META, requires_grad=True)
        attention = PackedAttention(SimpleNamespace(kv_channels=8), rope=Rope(theta=1e4))
        hidden = rms_norm(x, weight, 1e-6)
        q, k = hidden.view(n, 4, 8), hidden[:, :16].reshape(n, 2, 8)
        out = attention(q, k, k, packed_seq_params=batch.layout)
        logits = swiglu(out.repeat(1, 2))[batch.rows_N]
        logprobs, entropy = token_logprobs(logits * 1.0, batch.targets_N)
        (logprobs * batch.weights_N).sum().backward()
    assert (out.shape, entropy.device.type) == ((n, 32), META)
    assert x.grad is not None and weight.grad is not None
    assert x.grad.device.type == weight.grad.device.type == META
    assert seen.n_operations > 50


@pytest.mark.parametrize("correction", ["token", "sequence"])
@pytest.mark.parametrize("name", objectives.names())
def test_objectives_stay_on_their_device_and_are_the_same_on_every_rank(name: str, correction: Any) -> None:
    objective = objectives.get(name)
    settings = TrainerSettings(objective=name, old_policy="proximal", correction=correction, rejection="geometric")
    with OneDevice() as seen:
        batch = on_meta()
        logprobs = torch.empty_like(batch.behaviour_N, requires_grad=True)
        tokens = LossTokens(
            logprobs_N=logprobs,
            behaviour_N=batch.behaviour_N,
            proximal_N=logprobs.detach(),
            advantages_N=batch.advantages_N,
            segment_N=batch.segment_N,
            episode_N=batch.episode_N,
            group_N=batch.group_N,
        )
        seen.names.clear()
        result = policy_loss(objective, tokens, settings.algorithm)
        policy_diagnostics(tokens, logprobs.detach())
        (result.loss_N * batch.weights_N).sum().backward()
    assert logprobs.grad is not None and seen.n_operations > 10
    assert not seen.names & NOT_REPEATABLE
