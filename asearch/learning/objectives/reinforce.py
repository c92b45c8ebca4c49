"""REINFORCE: no ratio and no clip."""

from asearch.learning.objectives.tokens import LossTokens, Objective, ObjectiveLoss, objectives
from asearch.learning.presets import Algorithm


def reinforce(tokens: LossTokens, algorithm: Algorithm) -> ObjectiveLoss:
    """-A·log π_θ of each token (Williams 1992, https://doi.org/10.1007/BF00992696).

    With leave-one-out advantages RLOO (Ahmadian et al., arXiv 2402.14740, §2.2). Tokens of another policy than the trained one
    need the `correction`: then it is off-policy REINFORCE with truncated importance sampling.
    """
    del algorithm
    return ObjectiveLoss(-tokens.advantages_N * tokens.logprobs_N, {})


objectives.register("rloo")(Objective(reinforce))
