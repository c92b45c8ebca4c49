"""What an objective is given and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from asearch.learning.presets import Algorithm
from asearch.registry import Registry

MAX_LOG_RATIO = 80.0
"""Nats beyond which a log ratio of two policies is held constant, so that its exponential is finite in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTokens:
    """N tokens that a loss is taken over. A segment's tokens are all here; segments, episodes and groups are numbered.

    Nothing depends on the order of the tokens. Log-probabilities are in nats.
    """

    logprobs_N: Tensor
    """Under the weights that are trained; carries the gradient."""
    behaviour_N: Tensor
    """Under the weights that sampled the token, as the engine said."""
    proximal_N: Tensor
    """Under the weights before this update; carries no gradient."""
    advantages_N: Tensor
    segment_N: Tensor
    episode_N: Tensor
    group_N: Tensor
    reference_N: Tensor | None = None
    """Under the reference policy, where there is one; carries no gradient."""

    entropy_N: Tensor | None = None
    """Of the policy that is trained, in nats; carries the gradient where the loss has an entropy."""

    def old_logprobs(self, algorithm: Algorithm) -> Tensor:
        """Log-probabilities (N,) under the policy that the ratio is taken against."""
        return self.proximal_N if algorithm.old_policy == "proximal" else self.behaviour_N


@dataclass(frozen=True, slots=True)
class ObjectiveLoss:
    """The loss (N,) of each token, and diagnostics by name: sums over tokens, and maxima where the name ends in `_max`."""

    loss_N: Tensor
    sums: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """A form of the loss; `uses_advantages` is false for supervised ones, which then train every reward alike."""

    compute: Callable[[LossTokens, Algorithm], ObjectiveLoss]
    uses_advantages: bool = True


objectives: Registry[Objective] = Registry("objective")
