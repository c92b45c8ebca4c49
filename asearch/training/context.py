"""Context parallelism: every sequence is divided over the ranks of a group, each of which holds two pieces of it.

A sequence of L padded tokens is cut into 2 · size chunks; rank r holds chunks r and 2 · size - 1 - r, so that under a causal
mask all ranks have the same work (the zig-zag of Megatron-LM's and Transformer Engine's context parallelism). Keys and values
are gathered, queries stay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, distributed
from torch.nn.functional import pad, scaled_dot_product_attention

from asearch.models.rope import Rope
from asearch.training.dense import dense_batches
from asearch.training.kernels import rotate
from asearch.training.parallel import context_group
from asearch.training.rotary import tables


@dataclass(frozen=True, slots=True)
class Split:
    """How the tokens of a micro-batch are divided over ranks."""

    tensor_size: int = 1
    context_rank: int = 0
    context_size: int = 1


WHOLE = Split()
"""Not divided."""


@dataclass
class ContextLayout(PackedSeqParams):
    """A rank's share of dense batches: of (n, length) it holds n sequences of 2 chunks, padding included."""

    shapes: tuple[tuple[int, int], ...] = ()
    rank: int = 0
    size: int = 1
    source_T: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Packed token of each of this rank's tokens; padding repeats the sequence's last token."""


@dataclass(frozen=True, slots=True)
class HeldTokens:
    """Which of the N loss tokens of a micro-batch this rank computes, and where it finds the others."""

    held_M: Tensor
    source_N: Tensor
    """Place in what all ranks computed, one after the other, each filled up to `n_most`."""
    n_most: int


def context_layout(lengths: Sequence[int], rows_N: Tensor, split: Split) -> tuple[ContextLayout, Tensor, HeldTokens]:
    """The share of rank `split.context_rank` in sequences of `lengths` tokens, packed in this order.

    `rows_N` are packed tokens at which logits are taken. Returns the layout, those of the rows that the rank has as rows of
    its own tokens (M,), and which these are.
    """
    size = split.context_size
    # Ranks that share a matrix divide the tokens once more.
    step = math.lcm(2 * size, size * split.tensor_size)
    batches = [(first, last, -(-max(lengths[first:last]) // step) * step) for first, last in dense_batches(lengths)]
    sources = [_source(lengths, batches, rank, size) for rank in range(size)]
    rank_of = torch.empty(sum(lengths), dtype=torch.int64)
    row_of = torch.empty_like(rank_of)
    for rank, (source_T, is_real_T) in enumerate(sources):
        rank_of[source_T[is_real_T]] = rank
        row_of[source_T[is_real_T]] = is_real_T.nonzero().squeeze(1)
    layout = ContextLayout(
        qkv_format="thd",
        **_sequence_bounds(lengths, batches),
        shapes=tuple((last - first, length) for first, last, length in batches),
        rank=split.context_rank,
        size=size,
        source_T=sources[split.context_rank][0],
    )
    ranks_N = rank_of[rows_N]
    counts = torch.bincount(ranks_N, minlength=size)
    n_most = int(counts.max())
    source_N = torch.empty_like(ranks_N)
    for rank in range(size):
        source_N[ranks_N == rank] = rank * n_most + torch.arange(int(counts[rank]))
    held_M = (ranks_N == split.context_rank).nonzero().squeeze(1)
    return layout, row_of[rows_N[held_M]], HeldTokens(held_M, source_N, n_most)


def _source(lengths: Sequence[int], batches: Sequence[tuple[int, int, int]], rank: int, size: int) -> tuple[Tensor, Tensor]:
    lengths_S = torch.tensor(lengths, dtype=torch.int64)
    starts_S = lengths_S.cumsum(0) - lengths_S
    source: list[Tensor] = []
    is_real: list[Tensor] = []
    for first, last, length in batches:
        positions_L = own_positions(length, rank, size)
        ends_S1 = lengths_S[first:last, None]
        source.append((starts_S[first:last, None] + torch.minimum(positions_L, ends_S1 - 1)).reshape(-1))
        is_real.append((positions_L < ends_S1).reshape(-1))
    return torch.cat(source), torch.cat(is_real)


def own_positions(length: int, rank: int, size: int) -> Tensor:
    """Positions (length / size,) of a sequence of `length` tokens that a rank holds."""
    chunks = torch.arange(length).view(2 * size, -1)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def _sequence_bounds(lengths: Sequence[int], batches: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    padded = [length for first, last, length in batches for _ in range(first, last)]
    bounds, padded_bounds = (
        torch.tensor([0, *values], dtype=torch.int32).cumsum(0, dtype=torch.int32) for values in (lengths, padded)
    )
    return {
        "cu_seqlens_q": bounds,
        "cu_seqlens_kv": bounds,
        "cu_seqlens_q_padded": padded_bounds,
        "cu_seqlens_kv_padded": padded_bounds,
        "max_seqlen_q": max(padded),
        "max_seqlen_kv": max(padded),
    }


def context_attention(
    query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, layout: ContextLayout, scale: float | None, rope: Rope
) -> Tensor:
    """Rotate this rank's queries and keys, and attend to the keys of all ranks. Returns (T, H·D)."""
    head_dim = query_THD.shape[2]
    sizes = [n * length // layout.size for n, length in layout.shapes]
    queries, keys = (
        torch.cat(
            [
                _rotated(part, shape, layout, head_dim, rope)
                for part, shape in zip(x.flatten(1).contiguous().split(sizes), layout.shapes, strict=True)
            ]
        )
        for x in (query_THD, key_TGD)
    )
    gathered_RTW = _AllGather.apply(torch.cat((keys, value_TGD.flatten(1)), 1))
    outputs: list[Tensor] = []
    start = 0
    for (n, length), n_rows in zip(layout.shapes, sizes, strict=True):
        rows = slice(start, start + n_rows)
        whole_BLW = _whole(cast("Tensor", gathered_RTW)[:, rows], n, layout.size)
        k_BGLD, v_BGLD = (x.view(n, length, -1, head_dim).transpose(1, 2) for x in whole_BLW.chunk(2, 2))
        q_BCLD = queries[rows].view(n, 2, n_rows // (2 * n), -1, head_dim)
        pieces = [
            _attend(q_BCLD[:, i].transpose(1, 2), k_BGLD, v_BGLD, chunk, scale)
            for i, chunk in enumerate((layout.rank, 2 * layout.size - 1 - layout.rank))
        ]
        outputs.append(torch.cat(pieces, 2).transpose(1, 2).reshape(n_rows, -1))
        start += n_rows
    return torch.cat(outputs)


def _attend(q_BHLD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, chunk: int, scale: float | None) -> Tensor:
    """Queries of one chunk over the keys up to their own."""
    n = q_BHLD.shape[2]
    end = (chunk + 1) * n
    mask = torch.ones(n, end, dtype=torch.bool, device=q_BHLD.device).tril(chunk * n)
    grouped = q_BHLD.shape[1] != k_BGLD.shape[1]
    return scaled_dot_product_attention(
        q_BHLD, k_BGLD[:, :, :end], v_BGLD[:, :, :end], attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def _rotated(x_PW: Tensor, shape: tuple[int, int], layout: ContextLayout, head_dim: int, rope: Rope) -> Tensor:
    cos, sin = tables(shape[1], x_PW.shape[1] // head_dim, head_dim, rope, x_PW)
    own = own_positions(shape[1], layout.rank, layout.size)
    return rotate(x_PW, cos[own], sin[own], head_dim)


def _whole(x_RTW: Tensor, n: int, size: int) -> Tensor:
    """Chunks of all ranks in the order of the positions: (R, n · 2 · m, W) -> (n, 2 · R · m, W)."""
    chunks = x_RTW.view(size, n, 2, -1, x_RTW.shape[2]).permute(2, 1, 0, 3, 4)
    return torch.cat((chunks[0], chunks[1].flip(1)), 1).reshape(n, -1, x_RTW.shape[2])


class _AllGather(torch.autograd.Function):
    """(T, W) of every rank of the context group as (R, T, W); the gradient comes back as the sum of all ranks' parts."""

    @staticmethod
    def forward(ctx: Any, x_TW: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        group = context_group()
        out = x_TW.new_empty((group.size(), *x_TW.shape))
        distributed.all_gather_into_tensor(out.view(-1, x_TW.shape[1]), x_TW.contiguous(), group=group)  # pyright: ignore[reportDeprecated]
        return out

    @staticmethod
    def backward(ctx: Any, grad_RTW: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        group = context_group()
        own = grad_RTW.new_empty(grad_RTW.shape[1:])
        distributed.reduce_scatter_tensor(own, grad_RTW.contiguous().view(-1, own.shape[1]), group=group)  # pyright: ignore[reportDeprecated]
        return own


def whole_tokens(values_M: Tensor, held: HeldTokens) -> Tensor:
    """The values (N,) of all loss tokens of a micro-batch, from those that each rank of the context group computed.

    Every rank goes on to compute the same loss: the gradient that comes back is the whole one, of which each takes its own.
    """
    return cast("Tensor", _WholeTokens.apply(values_M, held))


class _WholeTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_M: Tensor, held: HeldTokens) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.held = held
        group = context_group()
        filled = pad(values_M, (0, held.n_most - values_M.shape[0]))
        out = values_M.new_empty(group.size() * held.n_most)
        distributed.all_gather_into_tensor(out, filled, group=group)  # pyright: ignore[reportDeprecated]
        return out[held.source_N.to(out.device)]

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_N[ctx.held.held_M.to(grad_N.device)], None
