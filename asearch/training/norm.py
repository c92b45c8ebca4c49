"""RMSNorm for the CPU layer spec, with sequence parallelism, which megatron's torch wrapper refuses."""

from typing import Any

import torch


class RankNorm(torch.nn.RMSNorm):
    """torch's RMSNorm behind the constructor that megatron's specs call."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        # Megatron sums the gradient of parameters marked so over the ranks that share a sequence.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
