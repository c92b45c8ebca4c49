"""What is reported of every update beside its loss, and how reports of micro-batches and ranks become one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asearch.learning.objectives.kl import kl_sums
from asearch.learning.objectives.tokens import LossTokens


@torch.no_grad()
def policy_diagnostics(tokens: LossTokens, entropy_N: Tensor) -> dict[str, Tensor]:
    """How far the trainer's policy before the update is from what the engine sampled with, and its entropy.

    `kl_k1` and `kl_k3` estimate KL(behaviour ‖ proximal). Staleness and the difference of the two implementations both count.
    """
    delta_N = tokens.proximal_N - tokens.behaviour_N
    apart_N = delta_N.abs()
    return {
        "entropy": entropy_N.sum(),
        "logprob_difference": apart_N.sum(),
        "logprob_difference_max": apart_N.max() if apart_N.numel() else apart_N.sum(),
        **kl_sums(delta_N, "kl"),
    }


def is_maximum(name: str) -> bool:
    """Whether the diagnostic of this name is a maximum over tokens; all others are sums."""
    return name.endswith("_max")


def merge(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One report of several: sums added, maxima taken. All have the same names."""
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {name: values.max() if is_maximum(name) else values.sum() for name, values in stacked.items()}
