"""Rotary tables that are kept between batches."""

from functools import lru_cache

from torch import Tensor, device, dtype

from asearch.models.rope import Rope
from asearch.training.kernels import rotary_tables


def tables(length: int, n_heads: int, head_dim: int, rope: Rope, of: Tensor) -> tuple[Tensor, Tensor]:
    """`rotary_tables` for positions 0 .. length - 1, of the type of `of` and on its device."""
    # Lengths differ from batch to batch; the tables of a shorter one are the beginning of those of a longer one.
    cos, sin = _tables(1 << (length - 1).bit_length(), n_heads, head_dim, rope, of.dtype, of.device)
    return cos[:length], sin[:length]


@lru_cache(maxsize=8)
def _tables(length: int, n_heads: int, head_dim: int, rope: Rope, kind: dtype, place: device) -> tuple[Tensor, Tensor]:
    # Made on a CPU wherever they go: the angles are the same then.
    cos, sin = rotary_tables(length, n_heads, head_dim, rope)
    return cos.to(place, kind), sin.to(place, kind)
