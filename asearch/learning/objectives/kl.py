"""Estimators of a Kullback-Leibler divergence from log-probabilities of sampled tokens."""

import torch
from torch import Tensor

from asearch.learning.presets import KlEstimator

MAX_LOG_RATIO = 20.0
"""Nats beyond which the log ratio is held constant (verl's bound): one token must not outweigh a whole batch."""


def k1(log_ratio_N: Tensor) -> Tensor:
    """-log r with log r = log q - log p, of tokens sampled from p: unbiased for KL(p ‖ q), of either sign.

    Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html. As a loss its gradient is 0 on average.
    """
    return -log_ratio_N


def k2(log_ratio_N: Tensor) -> Tensor:
    """(log r)²/2: biased, but its gradient in the weights of p is unbiased for tokens sampled from p (Schulman 2020)."""
    return 0.5 * log_ratio_N.square()


def k3(log_ratio_N: Tensor) -> Tensor:
    """r - 1 - log r: unbiased, of low variance, never negative (Schulman 2020; GRPO, arXiv 2402.03300, Eq. 4)."""
    return log_ratio_N.exp() - 1 - log_ratio_N


def reference_kl(logprobs_N: Tensor, reference_N: Tensor, estimator: KlEstimator) -> Tensor:
    """An estimate (N,) of KL(π_θ ‖ π_ref) at each token, in nats, with its gradient in `logprobs_N`."""
    log_ratio_N = (reference_N - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return k2(log_ratio_N) if estimator == "k2" else k3(log_ratio_N)


@torch.no_grad()
def kl_sums(log_ratio_N: Tensor, name: str) -> dict[str, Tensor]:
    """Sums over tokens of k1 and k3, as `{name}_k1` and `{name}_k3`."""
    return {f"{name}_k1": k1(log_ratio_N).sum(), f"{name}_k3": k3(log_ratio_N).sum()}
