"""Rotary position embeddings: how fast each pair of numbers of a head turns."""

import math

import torch
from torch import Tensor

from asearch.models.rope import Rope


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each pair of a head, (head_dim / 2,) float32."""
    # fp32 throughout, as the reference implementation does it: fp64 would differ from it at far positions.
    plain_C = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.scaling is None:
        return plain_C
    low, high = rope.scaling.low_freq_factor, rope.scaling.high_freq_factor
    # How often a pair turns within the context of pre-training: often, it stays; seldom, it is slowed; in between, in between.
    turns_C = rope.scaling.original_max_position_embeddings / (2 * math.pi / plain_C)
    kept_C = ((turns_C - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept_C) * plain_C / rope.scaling.factor + kept_C * plain_C
