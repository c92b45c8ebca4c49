"""Supervised fine-tuning."""

from asearch.learning.objectives.tokens import LossTokens, Objective, ObjectiveLoss, objectives
from asearch.learning.presets import Algorithm


def sft(tokens: LossTokens, algorithm: Algorithm) -> ObjectiveLoss:
    """Negative log-likelihood of every loss token; rewards, versions and behaviour log-probabilities play no part."""
    del algorithm
    return ObjectiveLoss(-tokens.logprobs_N, {})


objectives.register("sft")(Objective(sft, uses_advantages=False))
