"""Causal attention over packed (thd) sequences without Transformer Engine: those of similar length are padded into dense batches.

Only attention sees the padding; every other layer works on the packed tokens. A right-padded row is never a key of a real
query under a causal mask, so no further mask is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asearch.models.rope import Rope
from asearch.training.context import ContextLayout, context_attention
from asearch.training.dense import dense_batches
from asearch.training.kernels import rotate
from asearch.training.rotary import tables


@dataclass
class PackedLayout(PackedSeqParams):
    """Where the T packed tokens of a micro-batch lie in P padded rows of dense batches (n_sequences, length)."""

    shapes: tuple[tuple[int, int], ...] = ()
    source_P: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Packed token of every padded row; padding repeats the sequence's last token."""
    place_T: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Padded row of every packed token."""


def packed_layout(lengths: Sequence[int]) -> PackedLayout:
    """The layout of sequences of `lengths` tokens (all above 0) packed in this order; best if they do not increase."""
    lengths_S = torch.tensor(lengths, dtype=torch.int64)
    ends_S = lengths_S.cumsum(0)
    starts_S = ends_S - lengths_S
    shapes: list[tuple[int, int]] = []
    source: list[Tensor] = []
    place: list[Tensor] = []
    offset = 0
    for first, last in dense_batches(lengths):
        longest = max(lengths[first:last])
        steps_L = torch.arange(longest)
        shapes.append((last - first, longest))
        source.append(torch.minimum(starts_S[first:last, None] + steps_L, ends_S[first:last, None] - 1).reshape(-1))
        rows_SL = offset + torch.arange((last - first) * longest).view(-1, longest)
        place.append(rows_SL[steps_L < lengths_S[first:last, None]])
        offset += (last - first) * longest
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int32), ends_S.to(torch.int32)])
    return PackedLayout(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
        shapes=tuple(shapes),
        source_P=torch.cat(source),
        place_T=torch.cat(place),
    )


class PackedAttention(MegatronModule):
    """Core attention of the layer spec without Transformer Engine."""

    def __init__(self, config: Any, softmax_scale: float | None = None, *, rope: Rope, **_unused: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.rope = rope

    def forward(
        self,
        query_THD: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: PackedLayout | ContextLayout,
        **_unused: Any,
    ) -> Tensor:
        """Rotate queries and keys, and attend within each sequence. H query heads share G key heads in order.

        D is the head dimension; queries and keys come without positions. Returns (T, H·D).
        """
        layout = packed_seq_params
        if isinstance(layout, ContextLayout):
            return context_attention(query_THD, key_TGD, value_TGD, layout, self.softmax_scale, self.rope)
        sizes = [n * length for n, length in layout.shapes]
        parts = [_pad(x.flatten(1), layout).split(sizes) for x in (query_THD, key_TGD, value_TGD)]
        grouped = query_THD.shape[1] != key_TGD.shape[1]
        outputs: list[Tensor] = []
        for (n, length), q, k, v in zip(layout.shapes, *parts, strict=True):
            turned = (self._rotated(q, length), self._rotated(k, length), v)
            q_BHLD, k_BGLD, v_BGLD = (x.view(n, length, -1, query_THD.shape[2]).transpose(1, 2) for x in turned)
            out = scaled_dot_product_attention(
                q_BHLD, k_BGLD, v_BGLD, is_causal=True, scale=self.softmax_scale, enable_gqa=grouped
            )
            outputs.append(out.transpose(1, 2).reshape(n * length, -1))
        return cast("Tensor", _Unpad.apply(torch.cat(outputs), layout.place_T))

    def _rotated(self, x_PW: Tensor, length: int) -> Tensor:
        head_dim = cast("int", self.config.kv_channels)
        cos, sin = tables(length, x_PW.shape[1] // head_dim, head_dim, self.rope, x_PW)
        return rotate(x_PW, cos, sin, head_dim)


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_T: Tensor, source_P: Tensor, place_T: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(place_T)
        return x_T.index_select(0, source_P)

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Padding rows get no gradient: no real query attends to them and their outputs are dropped.
        (place_T,) = cast("tuple[Tensor]", ctx.saved_tensors)
        return grad_P.index_select(0, place_T), None, None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_P: Tensor, place_T: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(place_T)
        ctx.n_padded = x_P.shape[0]
        return x_P.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (place_T,) = cast("tuple[Tensor]", ctx.saved_tensors)
        grad_P = grad_T.new_zeros((ctx.n_padded, *grad_T.shape[1:]))
        return grad_P.index_copy_(0, place_T, grad_T), None


def _pad(x_THD: Tensor, layout: PackedLayout) -> Tensor:
    return cast("Tensor", _Pad.apply(x_THD, layout.source_P, layout.place_T))
