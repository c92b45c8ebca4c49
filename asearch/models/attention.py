"""How one forward pass attends: plans over the rows of a cache, built once a step and shared by all layers.

Shapes: N tokens of the step, Q query heads, K key heads, G = Q / K, D head width, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asearch.models.kv_cache import KvCache

_DENSE = 0.6
"""Least share of active rows at which attending over the whole range of rows beats gathering the active ones."""


class Plan(Protocol):
    """Attention of one step."""

    def attend(self, layer: int, q_NQD: Tensor) -> Tensor:
        """Returns [N, Q * D]: the queries attended over the keys and values already written in `layer`."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one row within a step's packed tokens."""

    row: int
    start: int
    """Position of the first token in its row."""
    first: int
    """Index of the first token in the step."""
    n_tokens: int


class OneTokenPlan:
    """One query per row: a decoding step, or the last token of each prompt."""

    def __init__(self, cache: KvCache, n_kv_heads: int, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """`lengths` count the positions to attend over, the query's own included."""
        self._cache, self._n_kv_heads = cache, n_kv_heads
        self._n_rows, self._n_positions = max(rows) + 1, max(lengths)
        dense = len(rows) >= _DENSE * self._n_rows
        self._rows_N: Tensor | None = None
        if len(rows) < self._n_rows or any(row != i for i, row in enumerate(rows)):
            self._rows_N = torch.tensor(rows, device=cache.device)
        self._gather = self._rows_N is not None and not dense
        lengths_N = torch.tensor(lengths, device=cache.device)
        if self._rows_N is not None and dense:
            lengths_N = lengths_N.new_ones(self._n_rows).index_copy_(0, self._rows_N, lengths_N)
        outside = torch.arange(self._n_positions, device=cache.device) >= lengths_N.unsqueeze(1)
        mask = torch.zeros(outside.shape, device=cache.device).masked_fill_(outside, -torch.inf)
        self._mask_N11P = mask[:, None, None, :]

    def attend(self, layer: int, q_NQD: Tensor) -> Tensor:
        """See `Plan`."""
        k_heads, rows_N = self._n_kv_heads, self._rows_N
        n, q_heads, d = q_NQD.shape
        kv = self._cache.kv_SLPW[:, layer, : self._n_positions]
        if rows_N is not None and self._gather:
            kv = kv.index_select(0, rows_N)
        else:
            kv = kv[: self._n_rows]
            if rows_N is not None:
                full = q_NQD.new_zeros(self._n_rows, q_heads, d)
                q_NQD = full.index_copy_(0, rows_N, q_NQD)
        kv = kv.unflatten(2, (2, k_heads, d))
        k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        # The G query heads of one key head stand as G queries, so that keys need no repetition.
        q = q_NQD.view(-1, k_heads, q_heads // k_heads, d)
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._mask_N11P)
        if rows_N is not None and not self._gather:
            out = out.index_select(0, rows_N)
        return out.reshape(n, q_heads * d)


class SpansPlan:
    """Several queries per row: prompts, or parts of them. Each token sees its row up to itself."""

    def __init__(self, cache: KvCache, n_kv_heads: int, spans: Sequence[Span]) -> None:
        self._cache, self._n_kv_heads, self._spans = cache, n_kv_heads, spans
        self._masks_TP: list[Tensor | None] = []
        for span in spans:
            if span.start == 0:
                self._masks_TP.append(None)
                continue
            n_positions = span.start + span.n_tokens
            positions_P = torch.arange(n_positions, device=cache.device)
            ahead = positions_P > positions_P[span.start :].unsqueeze(1)
            self._masks_TP.append(torch.zeros(ahead.shape, device=cache.device).masked_fill_(ahead, -torch.inf))

    def attend(self, layer: int, q_NQD: Tensor) -> Tensor:
        """See `Plan`."""
        n, q_heads, d = q_NQD.shape
        k_heads, group = self._n_kv_heads, q_heads // self._n_kv_heads
        out_NKGD = q_NQD.new_empty(n, k_heads, group, d)
        for span, mask_TP in zip(self._spans, self._masks_TP, strict=True):
            n_positions = span.start + span.n_tokens
            kv = self._cache.kv_SLPW[span.row, layer, :n_positions].unflatten(1, (2, k_heads, d))
            k = kv[:, 0].transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
            v = kv[:, 1].transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
            q = q_NQD[span.first : span.first + span.n_tokens].view(-1, k_heads, group, d).permute(1, 2, 0, 3)
            held = scaled_dot_product_attention(q, k, v, attn_mask=mask_TP, is_causal=mask_TP is None)
            out_NKGD[span.first : span.first + span.n_tokens] = held.permute(2, 0, 1, 3)
        return out_NKGD.view(n, q_heads * d)
