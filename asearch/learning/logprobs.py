"""Log-probabilities and entropies of tokens from logits, with one (N, V) array alive between forward and backward."""

from typing import Any, cast

import torch
from torch import Tensor

ROWS = 1024
"""Rows of logits that are worked on at a time, so that the passes over them stay in the processor's cache."""


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        n = targets_N.shape[0]
        logprobs_N = logits_NV.new_empty(n, dtype=torch.float32)
        entropy_N = logits_NV.new_zeros(n, dtype=torch.float32)
        for start in range(0, n, ROWS):
            rows = slice(start, start + ROWS)
            chunk = logits_NV[rows]
            values = torch.log_softmax(chunk, -1, dtype=torch.float32)
            logprobs_N[rows] = values.gather(1, targets_N[rows, None]).squeeze(1)
            probs = values.exp()
            if with_entropy:
                entropy_N[rows] = -torch.linalg.vecdot(probs, values)
            # The logits are needed no more: their memory holds the probabilities from here on.
            chunk.copy_(probs)
        ctx.save_for_backward(logits_NV, targets_N)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _entropy: Tensor | None) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        probs_NV, targets_N = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        grad_NV = torch.empty_like(probs_NV)
        for start in range(0, targets_N.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            grad = grad_N[rows, None].to(probs_NV.dtype)
            chunk = torch.mul(probs_NV[rows], -grad, out=grad_NV[rows])
            chunk.scatter_add_(1, targets_N[rows, None], grad)
        return grad_NV, None, None


def token_logprobs(logits_NV: Tensor, targets_N: Tensor, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets_N` (int64 ids) under softmax(`logits_NV`), in nats, and the entropies.

    Overwrites `logits_NV` with the probabilities: it must be the output of an operation that does not keep its result for
    its own backward, and be used nowhere else. Both results are (N,) float32. The entropies (zeros unless `with_entropy`)
    carry no gradient.
    """
    return cast("tuple[Tensor, Tensor]", _TokenLogprobs.apply(logits_NV, targets_N, with_entropy))
