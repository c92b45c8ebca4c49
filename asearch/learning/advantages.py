"""Advantages of episodes from the rewards of their groups. Plain numbers, no tensors."""

import math
from collections.abc import Callable, Sequence

from asearch.registry import Registry

Estimator = Callable[[Sequence[Sequence[float]]], list[list[float]]]
"""Rewards by group and member -> advantages in the same shape."""

estimators: Registry[Estimator] = Registry("advantage")

GAE = "gae"
"""The estimator that needs a critic."""

STD_FLOOR = 1e-6
"""Groups whose rewards differ by less than this (in standard deviation) carry no signal: their advantages are 0."""


@estimators.register("grpo_mean")
def grpo_mean(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Reward minus the mean of its group: no division by the spread (Dr. GRPO, arXiv 2503.20783; ASearcher's workflow)."""
    return [_centred(group) for group in rewards]


@estimators.register("grpo")
def grpo(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Reward minus the group's mean, over the group's standard deviation (DeepSeekMath, arXiv 2402.03300, §4.1).

    The standard deviation is that of the population (divisor n), so a group of two scores +1 and -1.
    """
    result: list[list[float]] = []
    for group in rewards:
        centred = _centred(group)
        std = math.sqrt(math.fsum(a * a for a in centred) / len(centred)) if centred else 0.0
        result.append([a / std for a in centred] if std > STD_FLOOR else [0.0] * len(centred))
    return result


@estimators.register("rloo")
def rloo(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Reward minus the mean of the others of its group (leave one out; Kool et al. 2019; RLOO, arXiv 2402.14740, §2.2).

    That is n/(n - 1) times the reward minus the mean of all n. A group of one has advantage 0.
    """
    return [[a * len(group) / max(len(group) - 1, 1) for a in _centred(group)] for group in rewards]


@estimators.register(GAE)
def gae_return(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """The reward itself: what generalised advantage estimation starts from (`asearch.learning.gae`).

    The trainer subtracts its critic's values token by token; with values of 0 and γ = λ = 1 it is the advantage of every token.
    """
    return [list(group) for group in rewards]


def whiten(advantages: Sequence[Sequence[float]], n_tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    """Shift and scale to mean 0 and standard deviation 1 over the batch, each episode weighted by its loss tokens.

    `n_tokens` has the shape of `advantages`. A batch without spread is returned as zeros.
    """
    flat = [(a, n) for group, counts in zip(advantages, n_tokens, strict=True) for a, n in zip(group, counts, strict=True)]
    total = sum(n for _, n in flat)
    if total == 0:
        return [list(group) for group in advantages]
    mean = math.fsum(a * n for a, n in flat) / total
    std = math.sqrt(math.fsum(n * (a - mean) ** 2 for a, n in flat) / total)
    if std <= STD_FLOOR:
        return [[0.0] * len(group) for group in advantages]
    return [[(a - mean) / std for a in group] for group in advantages]


def _centred(group: Sequence[float]) -> list[float]:
    if not group:
        return []
    mean = math.fsum(group) / len(group)
    centred = [reward - mean for reward in group]
    # Equal rewards must give exact zeros, whatever the rounding of their mean.
    return centred if max(group) - min(group) > STD_FLOOR else [0.0] * len(group)
