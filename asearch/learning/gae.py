"""Generalised advantage estimation over the trained tokens of one episode. Plain numbers, no tensors."""

from collections.abc import Sequence
from typing import NamedTuple


class TokenAdvantages(NamedTuple):
    """What a critic's values become."""

    advantages: list[float]
    returns: list[float]
    """Targets of the critic: advantage plus value."""


def gae(values: Sequence[float], reward: float, gamma: float, gae_lambda: float) -> TokenAdvantages:
    """Advantages of the tokens of an episode whose `reward` comes at its last token, `values` being the critic's before each.

    δ_t = r_t + γ·V_{t+1} - V_t, A_t = δ_t + γ·λ·A_{t+1} (Schulman et al., arXiv 1506.02438, Eq. 16; PPO, arXiv 1707.06347,
    Eq. 11 and 12), V and A being 0 after the end. The trained tokens of all segments of the episode are one sequence, in order:
    tokens between them are no actions, and a segment is followed by the next one as a token is by the next.
    """
    advantages = [0.0] * len(values)
    after, value_after, reward_here = 0.0, 0.0, reward
    for t in range(len(values) - 1, -1, -1):
        delta = reward_here + gamma * value_after - values[t]
        after = advantages[t] = delta + gamma * gae_lambda * after
        value_after, reward_here = values[t], 0.0
    return TokenAdvantages(advantages, [a + v for a, v in zip(advantages, values, strict=True)])
