"""Elementwise layers of the CPU spec as single autograd operations, worked off in blocks of rows that stay in the cache.

Composed of torch's own operations they take several passes over main memory each, forward and backward; on small models
that costs as much as the matrix products.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

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


def rotary_tables(length: int, n_heads: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate` at positions 0 .. length - 1, each (length, n_heads · head_dim) float32."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), 1).repeat(1, n_heads)
    return angles.cos(), angles.sin()


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        width = x.shape[1] // 2
        activated, out = x.new_empty(x.shape[0], width), x.new_empty(x.shape[0], width)
        for rows in _blocks(*x.shape):
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
        for rows in _blocks(*x.shape):
            g = grad_out[rows]
            torch.mul(g, activated[rows], out=grad[rows, width:])
            torch.ops.aten.silu_backward.grad_input(g * x[rows, width:], x[rows, :width], grad_input=grad[rows, :width])
        return grad


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        out = torch.empty_like(x)
        scale = x.new_empty(x.shape[0], 1, dtype=torch.float32)
        for rows in _blocks(*x.shape):
            block = x[rows].float()
            scale[rows, 0] = torch.linalg.vecdot(block, block).div_(x.shape[1]).add_(eps).rsqrt_()
            torch.mul((block * scale[rows]).to(x.dtype), weight, out=out[rows])
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = cast("tuple[Tensor, Tensor, Tensor]", ctx.saved_tensors)
        grad = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32)
        for rows in _blocks(*x.shape):
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
        turn = _half_turn(head_dim, x)
        out = torch.empty_like(x)
        for rows, table in _sequences(x, cos):
            block = x[rows]
            turned = (block.reshape(-1, head_dim) @ turn).view_as(block)
            torch.mul(block, cos[table], out=out[rows]).addcmul_(turned, sin[table])
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        back = _half_turn(ctx.head_dim, grad_out).t()
        grad = torch.empty_like(grad_out)
        for rows, table in _sequences(grad_out, cos):
            block = grad_out[rows]
            turned = ((block * sin[table]).view(-1, ctx.head_dim) @ back).view_as(block)
            torch.addcmul(turned, block, cos[table], out=grad[rows])
        return grad, None, None, None


def _half_turn(head_dim: int, like: Tensor) -> Tensor:
    # (a, b) -> (-b, a) as a product: one pass, and exact, since every sum has one term that is not 0.
    half = head_dim // 2
    turn = like.new_zeros(head_dim, head_dim)
    steps = torch.arange(half)
    turn[steps + half, steps] = -1.0
    turn[steps, steps + half] = 1.0
    return turn


def _blocks(n_rows: int, width: int) -> Iterator[slice]:
    step = max(BLOCK_ELEMENTS // width, 1)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _sequences(x: Tensor, table: Tensor) -> Iterator[tuple[slice, slice]]:
    length = table.shape[0]
    for start in range(0, x.shape[0], length):
        for part in _blocks(length, x.shape[1]):
            yield slice(start + part.start, start + part.stop), part
