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
                # An id whose logit is -inf has no probability, and nothing times its logarithm is nothing.
                entropy_N[rows] = -torch.linalg.vecdot(probs, values.clamp_min_(-1e30))
            # The logits are needed no more: their memory holds the probabilities from here on.
            chunk.copy_(probs)
        ctx.save_for_backward(logits_NV, targets_N, entropy_N)
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor | None, entropy_grad_N: Tensor | None) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        probs_NV, targets_N, entropy_N = cast("tuple[Tensor, Tensor, Tensor]", ctx.saved_tensors)
        grad_NV = torch.empty_like(probs_NV) if grad_N is not None else torch.zeros_like(probs_NV)
        for start in range(0, targets_N.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            if grad_N is not None:
                grad = grad_N[rows, None].to(probs_NV.dtype)
                chunk = torch.mul(probs_NV[rows], -grad, out=grad_NV[rows])
                chunk.scatter_add_(1, targets_N[rows, None], grad)
            if entropy_grad_N is not None:
                grad_NV[rows] += entropy_gradient(probs_NV[rows], entropy_N[rows], entropy_grad_N[rows])
        return grad_NV, None, None


def entropy_gradient(probs_NV: Tensor, entropy_N: Tensor, grad_N: Tensor) -> Tensor:
    """Gradient (N, V) in the logits of a sum of entropies weighed by `grad_N`: -p·(log p + H). `probs_NV` may be a part of V."""
    probs = probs_NV.float()
    return (-grad_N[:, None] * (torch.xlogy(probs, probs) + probs * entropy_N[:, None])).to(probs_NV.dtype)


def token_logprobs(logits_NV: Tensor, targets_N: Tensor, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets_N` (int64 ids) under softmax(`logits_NV`), in nats, and the entropies.

    Overwrites `logits_NV` with the probabilities: it must be the output of an operation that does not keep its result for
    its own backward, and be used nowhere else. Both results are (N,) float32 and carry a gradient; the entropies are zeros
    unless `with_entropy`.
    """
    return cast("tuple[Tensor, Tensor]", _TokenLogprobs.apply(logits_NV, targets_N, with_entropy))
