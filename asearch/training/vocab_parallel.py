"""Log-probabilities and entropies of tokens from logits whose vocabulary is spread over tensor-parallel ranks.

The counterpart of `learning.logprobs`: one (N, V / ranks) array is alive between forward and backward, and what ranks tell
one another is four numbers a token. Megatron-LM's parallel cross entropy (arXiv 1909.08053, §3) is the source of the idea.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup, ReduceOp

from asearch.learning.logprobs import ROWS, entropy_gradient


@dataclass(frozen=True, slots=True)
class VocabularyShare:
    """The rows of the output layer that this rank holds: ids `start` .. `start + n_ids - 1`, then padding."""

    start: int
    n_ids: int
    group: ProcessGroup


def share_of(vocab_size: int, n_rows: int, rank: int, group: ProcessGroup) -> VocabularyShare:
    """What rank `rank` of `group` holds of `vocab_size` ids where each holds `n_rows` rows."""
    start = rank * n_rows
    return VocabularyShare(start, max(0, min(n_rows, vocab_size - start)), group)


def shared_logprobs(
    logits_NV: Tensor, targets_N: Tensor, share: VocabularyShare, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, of the whole vocabulary, where `logits_NV` has this rank's rows of it. Overwrites `logits_NV`.

    Every rank of the group gets the same results (N,) float32; backward needs no communication.
    """
    return cast("tuple[Tensor, Tensor]", _SharedLogprobs.apply(logits_NV, targets_N, share, with_entropy))


class _SharedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, logits_NV: Tensor, targets_N: Tensor, share: VocabularyShare, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        n = targets_N.shape[0]
        # Padding has no part in anything: below any logit in the maximum, left out of the sums.
        logits_NV[:, share.n_ids :].fill_(-torch.inf)
        ids_NV = logits_NV[:, : share.n_ids]
        highest_N = logits_NV.amax(1).float()
        distributed.all_reduce(highest_N, ReduceOp.MAX, group=share.group)
        local_N = targets_N - share.start
        here_N = (local_N >= 0) & (local_N < share.n_ids)
        local_N = local_N.clamp(0, max(0, share.n_ids - 1))
        # Sums over the vocabulary of exp(x) and of exp(x) * x, and the target's x, where x is the logit less the highest one.
        sums_3N = logits_NV.new_zeros(3, n, dtype=torch.float32)
        for start in range(0, n, ROWS):
            rows = slice(start, start + ROWS)
            values = ids_NV[rows].float() - highest_N[rows, None]
            if share.n_ids:
                sums_3N[2, rows] = values.gather(1, local_N[rows, None]).squeeze(1).where(here_N[rows], 0.0)
            powers = values.exp()
            sums_3N[0, rows] = powers.sum(1)
            if with_entropy:
                # A logit of -inf has no probability, and nothing times it is nothing.
                sums_3N[1, rows] = torch.linalg.vecdot(powers, values.clamp_min(-1e30))
            ids_NV[rows].copy_(powers)
        distributed.all_reduce(sums_3N, group=share.group)
        total_N, weighted_N, target_N = sums_3N
        logprobs_N = target_N - total_N.log()
        entropy_N = total_N.log() - weighted_N / total_N if with_entropy else torch.zeros_like(total_N)
        ctx.n_ids = share.n_ids
        ctx.save_for_backward(logits_NV, total_N, local_N, here_N, entropy_N)
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_N: Tensor | None, entropy_grad_N: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        powers_NV, total_N, local_N, here_N, entropy_N = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        grad_NV = torch.zeros_like(powers_NV)
        ids_NV = powers_NV[:, : ctx.n_ids]
        for start in range(0, total_N.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            chunk = grad_NV[rows, : ctx.n_ids]
            if grad_N is not None:
                torch.mul(ids_NV[rows], (-grad_N[rows] / total_N[rows])[:, None].to(powers_NV.dtype), out=chunk)
                if ctx.n_ids:
                    chunk.scatter_add_(1, local_N[rows, None], (grad_N[rows] * here_N[rows])[:, None].to(powers_NV.dtype))
            if entropy_grad_N is not None:
                probs_NV = ids_NV[rows].float() / total_N[rows, None]
                chunk += entropy_gradient(probs_NV, entropy_N[rows], entropy_grad_N[rows]).to(powers_NV.dtype)
        return grad_NV, None, None, None
