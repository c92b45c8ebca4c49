"""Policy objectives by name. Each maps log-probabilities of N loss tokens to a loss per token and sums of diagnostics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asearch.registry import Registry

CapMode = Literal["mask", "clamp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """Parameters that objectives share; each reads those it knows."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    behaviour_cap: float | None = 5.0
    """Upper bound of the behaviour weight π_prox/π_behav; None leaves the weight as it is."""
    behaviour_cap_mode: CapMode = "mask"
    """`mask` gives tokens above the cap weight 0 (ASearcher), `clamp` gives them the cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTokens:
    """N tokens that a loss is taken over, in the order of the micro-batch; episodes and groups are numbered in the batch."""

    logprobs_N: Tensor
    """Under the weights that are trained, in nats; carries the gradient."""
    behaviour_N: Tensor
    """Under the weights that sampled the token, as the engine said."""
    proximal_N: Tensor
    """Under the weights before this update; carries no gradient."""
    advantages_N: Tensor
    episode_N: Tensor
    group_N: Tensor


@dataclass(frozen=True, slots=True)
class ObjectiveLoss:
    """What an objective returns: the loss of each token, and sums over tokens by metric name (divided by N later)."""

    loss_N: Tensor
    sums: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """A registered objective; `uses_advantages` is false for supervised ones, which then train every reward alike."""

    compute: Callable[[LossTokens, ObjectiveSettings], ObjectiveLoss]
    uses_advantages: bool = True


objectives: Registry[Objective] = Registry("objective")


def decoupled_ppo(tokens: LossTokens, settings: ObjectiveSettings) -> ObjectiveLoss:
    """-w · min(u·A, clip(u, 1 - clip_low, 1 + clip_high)·A), with u = π_θ/π_prox and w = π_prox/π_behav held constant.

    Decoupled PPO of AReaL (arXiv 2505.24298, Eq. 5), the cap on w of ASearcher (arXiv 2508.07976), separate clip bounds of
    DAPO (arXiv 2503.14476, Eq. 10).
    """
    log_ratio_N = tokens.logprobs_N - tokens.proximal_N
    ratio_N = log_ratio_N.exp()
    weight_N, capped_N = behaviour_weight(tokens.proximal_N, tokens.behaviour_N, settings)
    clipped_N = ratio_N.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    plain_N, bounded_N = ratio_N * tokens.advantages_N, clipped_N * tokens.advantages_N
    loss_N = -weight_N * torch.minimum(plain_N, bounded_N)
    with torch.no_grad():
        sums = {
            "clip_fraction": (bounded_N < plain_N).float().sum(),
            "behaviour_capped_fraction": capped_N.float().sum(),
            "behaviour_weight": weight_N.sum(),
            "policy_ratio": ratio_N.sum(),
        }
    return ObjectiveLoss(loss_N, sums)


def sft(tokens: LossTokens, settings: ObjectiveSettings) -> ObjectiveLoss:
    """Negative log-likelihood of every loss token; rewards, versions and behaviour log-probabilities play no part."""
    del settings
    return ObjectiveLoss(-tokens.logprobs_N, {})


def behaviour_weight(proximal_N: Tensor, behaviour_N: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """The constant weight π_prox/π_behav (N,), capped as `settings` say, and which tokens were above the cap (N,)."""
    weight_N = (proximal_N.detach() - behaviour_N).exp()
    if settings.behaviour_cap is None:
        return weight_N, torch.zeros_like(weight_N, dtype=torch.bool)
    capped_N = weight_N > settings.behaviour_cap
    replacement = 0.0 if settings.behaviour_cap_mode == "mask" else settings.behaviour_cap
    return weight_N.masked_fill(capped_N, replacement), capped_N


def policy_diagnostics(tokens: LossTokens, entropy_N: Tensor) -> dict[str, Tensor]:
    """Sums over tokens of the entropy and of two estimators of KL(behaviour ‖ policy) in nats.

    `kl_k1` is the plain log ratio, `kl_k3` the non-negative one of low variance (Schulman, "Approximating KL divergence").
    """
    with torch.no_grad():
        delta_N = tokens.logprobs_N.detach() - tokens.behaviour_N
        return {"entropy": entropy_N.sum(), "kl_k1": -delta_N.sum(), "kl_k3": (delta_N.exp() - 1 - delta_N).sum()}


objectives.register("decoupled_ppo")(Objective(decoupled_ppo))
objectives.register("sft")(Objective(sft, uses_advantages=False))
