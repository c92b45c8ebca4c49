"""Layers of the CPU spec that put our kernels behind megatron's interfaces. Transformer Engine has its own on a GPU."""

from typing import Any, cast

import torch
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from asearch.training.kernels import rms_norm, swiglu


class RankNorm(torch.nn.Module):
    """RMSNorm behind the constructor that megatron's specs call; it allows sequence parallelism, unlike its torch wrapper."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron sums the gradient of parameters marked so over the ranks that share a sequence.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class GatedMLP(MLP):
    """Megatron's MLP with SwiGLU in one operation; no biases."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_unused: Any) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(T, B, H) -> (T, B, H) and no bias."""
        gate_up, _ = cast("tuple[Tensor, None]", self.linear_fc1(hidden_states))
        return cast("tuple[Tensor, None]", self.linear_fc2(swiglu(gate_up)))
