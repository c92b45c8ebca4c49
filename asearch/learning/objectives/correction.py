"""What an update does about tokens that another policy sampled than the one that is updated: a weight, and refusal."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asearch.learning.objectives.segments import segment_mean, segment_sum
from asearch.learning.objectives.tokens import MAX_LOG_RATIO, LossTokens
from asearch.learning.presets import Algorithm


@dataclass(frozen=True, slots=True)
class Correction:
    """A constant weight (N,) of the losses, and which tokens (N,) each mechanism changed."""

    weight_N: Tensor
    capped_N: Tensor
    rejected_N: Tensor


@torch.no_grad()
def correct(tokens: LossTokens, algorithm: Algorithm) -> Correction:
    """Weights for ρ = π_prox/π_behav: of a token under `correction` = `token`, its product over the segment under `sequence`.

    A weight above `behaviour_cap` = C is

    - under `clamp` C: min(ρ, C), truncated importance sampling (TIS; Ionides 2008, https://doi.org/10.1198/106186008X320456;
      Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; verl's `rollout_is`);
    - under `mask` 0: ρ·1[ρ ≤ C], as ASearcher caps decoupled PPO (arXiv 2508.07976; AReaL's `behave_imp_weight_cap`).

    `rejection` gives weight 0 to what lies outside [`rejection_low`, `rejection_high`]: the token by its ρ, or the whole
    segment by the product or by the geometric mean of its ρ. With the weight of the same level it is masked importance sampling
    (MIS; IcePop, arXiv 2510.18855; Liu, Li et al. 2025, "When speed kills stability"), without one a rejection rule (verl's
    `rollout_rs`).
    The divisor of the loss still counts the tokens that are refused or capped, as in AReaL.
    """
    log_ratio_N = tokens.proximal_N - tokens.behaviour_N
    weight_N, capped_N = _weight(log_ratio_N, tokens.segment_N, algorithm)
    rejected_N = torch.zeros_like(capped_N)
    if algorithm.rejection != "none":
        low, high = algorithm.rejection_bounds()
        measured_N = _bounded_exp(_at_level(log_ratio_N, tokens.segment_N, algorithm.rejection))
        rejected_N = ~((measured_N >= low) & (measured_N <= high))
        weight_N = weight_N.masked_fill(rejected_N, 0.0)
    return Correction(weight_N, capped_N, rejected_N)


def _weight(log_ratio_N: Tensor, segment_N: Tensor, algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    if algorithm.correction == "none":
        return torch.ones_like(log_ratio_N), torch.zeros_like(log_ratio_N, dtype=torch.bool)
    # Not bounded: an update whose uncapped weight is infinite must fail, not go on with another weight.
    weight_N = _at_level(log_ratio_N, segment_N, algorithm.correction).exp()
    if not algorithm.behaviour_cap:
        return weight_N, torch.zeros_like(weight_N, dtype=torch.bool)
    capped_N = weight_N > algorithm.behaviour_cap
    replacement = 0.0 if algorithm.behaviour_cap_mode == "mask" else algorithm.behaviour_cap
    return weight_N.masked_fill(capped_N, replacement), capped_N


def _at_level(log_ratio_N: Tensor, segment_N: Tensor, level: str) -> Tensor:
    if level == "sequence":
        return segment_sum(log_ratio_N, segment_N)
    return segment_mean(log_ratio_N, segment_N) if level == "geometric" else log_ratio_N


def _bounded_exp(log_N: Tensor) -> Tensor:
    return log_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
