"""The clipped surrogate of PPO with a ratio per token, which GRPO, Dr. GRPO, DAPO, REINFORCE++ and decoupled PPO share."""

import torch
from torch import Tensor

from asearch.learning.objectives.tokens import MAX_LOG_RATIO, LossTokens, Objective, ObjectiveLoss, objectives
from asearch.learning.presets import Algorithm


def clipped_ratio(tokens: LossTokens, algorithm: Algorithm) -> ObjectiveLoss:
    """-min(r·A, clip(r, 1 - clip_low, 1 + clip_high)·A) of each token, with r = π_θ/π_old.

    PPO (arXiv 1707.06347, Eq. 7) with the separate bounds of DAPO (arXiv 2503.14476, Eq. 10). The same form with another
    advantage, normalisation or policy in the denominator is

    - GRPO (arXiv 2402.03300, Eq. 3), whose Kullback-Leibler term is `kl_coefficient`;
    - Dr. GRPO (arXiv 2503.20783, §3.2): no division by length and spread;
    - DAPO (arXiv 2503.14476, Eq. 8), whose dynamic sampling is `run.equal_rewards` = `discard`, with refills, and whose soft
      overlong punishment is part of the reward (`asearch.rewards.overlong`);
    - REINFORCE++ with baseline (arXiv 2501.03262, §3);
    - decoupled PPO (AReaL, arXiv 2505.24298, Eq. 5): π_old is the proximal policy, and the correction π_prox/π_behav on top.

    `dual_clip` = c above 0 bounds the loss of tokens with A < 0 by -c·A (arXiv 1912.09729, Eq. 5).
    """
    log_ratio_N = tokens.logprobs_N - tokens.old_logprobs(algorithm)
    return surrogate(log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), tokens.advantages_N, algorithm)


def surrogate(ratio_N: Tensor, advantages_N: Tensor, algorithm: Algorithm) -> ObjectiveLoss:
    """PPO's clipped surrogate, negated, of N tokens with these ratios."""
    clipped_N = ratio_N.clamp(1.0 - algorithm.clip_low, 1.0 + algorithm.clip_high)
    plain_N, bounded_N = ratio_N * advantages_N, clipped_N * advantages_N
    gain_N = torch.minimum(plain_N, bounded_N)
    sums: dict[str, Tensor] = {}
    if algorithm.dual_clip:
        floor_N = algorithm.dual_clip * advantages_N
        too_low_N = (advantages_N < 0) & (gain_N < floor_N)
        gain_N = torch.where(too_low_N, floor_N, gain_N)
        sums["dual_clip_fraction"] = too_low_N.float().sum()
    with torch.no_grad():
        sums |= {"clip_fraction": (bounded_N < plain_N).float().sum(), "policy_ratio": ratio_N.sum()}
    return ObjectiveLoss(-gain_N, sums)


for _name in ("decoupled_ppo", "ppo", "grpo", "dr_grpo", "dapo", "reinforce_plus_plus_baseline"):
    objectives.register(_name)(Objective(clipped_ratio))
