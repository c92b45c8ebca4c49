"""CISPO: the importance weight is clipped, the gradient of no token is lost."""

import torch

from asearch.learning.objectives.tokens import MAX_LOG_RATIO, LossTokens, Objective, ObjectiveLoss, objectives
from asearch.learning.presets import Algorithm


def clipped_weight(tokens: LossTokens, algorithm: Algorithm) -> ObjectiveLoss:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high))·A·log π_θ of each token, with r = π_θ/π_old.

    CISPO of MiniMax-M1 (arXiv 2506.13585, Eq. 4 and 5); `clip_low` = 1 sets no lower bound, as they do.
    """
    with torch.no_grad():
        log_ratio_N = tokens.logprobs_N - tokens.old_logprobs(algorithm)
        ratio_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        weight_N = ratio_N.clamp(1.0 - algorithm.clip_low, 1.0 + algorithm.clip_high)
        sums = {"clip_fraction": (weight_N != ratio_N).float().sum(), "policy_ratio": ratio_N.sum()}
    return ObjectiveLoss(-weight_N * tokens.advantages_N * tokens.logprobs_N, sums)


objectives.register("cispo")(Objective(clipped_weight))
