"""Elementwise layers of the CPU spec as single autograd operations, worked off in blocks of rows that stay in the cache.

Composed of torch's own operations they take several passes over main memory each, forward and backward; on small models
that costs as much as the matrix products. On another device all rows are one block: there each operation costs its launch.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from asearch.models.rope import Rope
from asearch.models.rotary import frequencies

BLOCK_ELEMENTS = 1 << 17


def swiglu(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) · up for (..., 2F) with the gates first; returns (..., F). Shazeer, arXiv 2002.05202."""
    flat = gate_up_TF.view(-1, gate_up_TF.shape[-1])
    return cast("Tensor", _SwiGLU.apply(flat)).view(*gate_up_TF.shape[:-1], -1)


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension. Zhang and Sennrich, arXiv 1910.07467."""
    flat = x_TH.reshape(-1, x_TH.shape[-1])
    return cast("Tensor", _RMSNorm.apply(flat, weight_H, eps)).view(x_TH.shape)


def rotate(x_TW: Tensor, cos_TW: Tensor, sin_TW: Tensor, head_dim: int) -> Tensor:
    """Rotary embedding of rows of heads, each of `head_dim` numbers whose halves are rotated against each other.

    `x_TW` is (T, heads · head_dim); the tables are (L, heads · head_dim) with L dividing T: row t has the position t mod L.
    RoFormer, arXiv 2104.09864, in the layout of Hugging Face's models.
    """
    return cast("Tensor", _Rotate.apply(x_TW, cos_TW, sin_TW, head_dim))


def rotary_tables(length: int, n_heads: int, head_dim: int, rope: Rope) -> tuple[Tensor, Tensor]:
    """Tables for `rotate` at positions 0 .. length - 1, each (length, n_heads · head_dim) float32.

    The sines of a head's first half are negative, so that `rotate` need not negate what it swaps.
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(rope, head_dim))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), 1).repeat(1, n_heads), torch.cat((-sin, sin), 1).repeat(1, n_heads)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        width = x.shape[1] // 2
        activated, out = x.new_empty(x.shape[0], width), x.new_empty(x.shape[0], width)
        for rows in _blocks(x):
            torch.ops.aten.silu.out(x[rows, :width], out=activated[rows])
            torch.mul(activated[rows], x[rows, width:], out=out[rows])
        # Kept, because on a CPU the exponential costs more than reading it back.
        ctx.save_for_backward(x, activated)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, activated = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        width = x.shape[1] // 2
        grad = torch.empty_like(x)
        for rows in _blocks(x):
            g = grad_out[rows]
            torch.mul(g, activated[rows], out=grad[rows, width:])
            torch.ops.aten.silu_backward.grad_input(g * x[rows, width:], x[rows, :width], grad_input=grad[rows, :width])
        return grad


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        out = torch.empty_like(x)
        scale = x.new_empty(x.shape[0], 1, dtype=torch.float32)
        for rows in _blocks(x):
            block = x[rows].float()
            scale[rows, 0] = torch.linalg.vecdot(block, block).div_(x.shape[1]).add_(eps).rsqrt_()
            torch.mul((block * scale[rows]).to(x.dtype), weight, out=out[rows])
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = cast("tuple[Tensor, Tensor, Tensor]", ctx.saved_tensors)
        grad = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for rows in _blocks(x):
            normed = x[rows].float() * scale[rows]
            g = grad_out[rows].float()
            grad_weight += torch.linalg.vecdot(g, normed, dim=0)
            g = g * weight
            along = torch.linalg.vecdot(g, normed)[:, None].div_(x.shape[1])
            grad[rows] = g.addcmul_(normed, along, value=-1.0).mul_(scale[rows])
        return grad, grad_weight.to(weight.dtype), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(cos, sin)
        ctx.head_dim = head_dim
        batch = x.view(-1, *cos.shape)
        return torch.mul(batch, cos).addcmul_(_halves_swapped(batch, head_dim), sin).view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        batch = grad_out.reshape(-1, *cos.shape)
        turned_back = _halves_swapped(batch * sin, ctx.head_dim)
        return torch.addcmul(turned_back, batch, cos).view_as(grad_out), None, None, None


def _halves_swapped(x: Tensor, head_dim: int) -> Tensor:
    # Whole halves are copied as rows: four times as fast as a flip, whose inner loop is as short as a half.
    halves = x.view(-1, head_dim // 2)
    n = halves.shape[0]
    return halves.index_select(0, _swapped(1 << (n - 1).bit_length(), x.device)[:n]).view_as(x)


@lru_cache(maxsize=8)
def _swapped(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device).view(-1, 2).flip(1).reshape(-1)


def _blocks(x: Tensor) -> Iterator[slice]:
    n_rows, width = x.shape
    step = max(BLOCK_ELEMENTS // width, 1) if x.device.type == "cpu" else n_rows
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))
