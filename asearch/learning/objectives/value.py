"""The loss of a critic."""

import torch
from torch import Tensor


def value_loss(values_N: Tensor, before_N: Tensor, returns_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """½·max((V - R)², (clip(V, V_old - clip, V_old + clip) - R)²) of each token (N,), and which were clipped (N,).

    PPO's squared error (arXiv 1707.06347, Eq. 9) with the value clipping of its implementations (Engstrom et al., arXiv
    2005.12729, §3; verl's `cliprange_value`); `clip` = 0 leaves the values as they are. `before_N` is V_old, before the update.
    """
    plain_N = (values_N - returns_N).square()
    if not clip:
        return 0.5 * plain_N, torch.zeros_like(plain_N, dtype=torch.bool)
    near_N = before_N + (values_N - before_N).clamp(-clip, clip)
    bounded_N = (near_N - returns_N).square()
    return 0.5 * torch.maximum(plain_N, bounded_N), bounded_N > plain_N
