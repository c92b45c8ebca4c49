"""The loss of a policy update: an objective's form, weighed by the correction, the divergence from the reference, the entropy."""

from asearch.errors import TrainingError
from asearch.learning.objectives.correction import correct
from asearch.learning.objectives.kl import reference_kl
from asearch.learning.objectives.tokens import LossTokens, Objective, ObjectiveLoss
from asearch.learning.presets import Algorithm


def policy_loss(objective: Objective, tokens: LossTokens, algorithm: Algorithm) -> ObjectiveLoss:
    """w·form + β·KL(π_θ ‖ π_ref) - c·H(π_θ) of each token, w of `correct`, β = `kl_coefficient`, c = `entropy_coefficient`.

    KL (GRPO's Eq. 3) and entropy (PPO, arXiv 1707.06347, Eq. 9) are not weighed. A supervised objective is its form alone.
    """
    form = objective.compute(tokens, algorithm)
    if not objective.uses_advantages:
        return form
    correction = correct(tokens, algorithm)
    loss_N = correction.weight_N * form.loss_N
    sums = {
        **form.sums,
        "behaviour_weight": correction.weight_N.sum(),
        "behaviour_capped_fraction": correction.capped_N.float().sum(),
        "rejected_fraction": correction.rejected_N.float().sum(),
    }
    if tokens.reference_N is not None:
        kl_N = reference_kl(tokens.logprobs_N, tokens.reference_N, algorithm.kl_estimator)
        sums["kl_reference"] = kl_N.detach().sum()
        if algorithm.kl_coefficient:
            loss_N = loss_N + algorithm.kl_coefficient * kl_N
    if algorithm.entropy_coefficient:
        if tokens.entropy_N is None:
            raise TrainingError("the loss has an entropy, but that of the tokens was not given")
        loss_N = loss_N - algorithm.entropy_coefficient * tokens.entropy_N
    return ObjectiveLoss(loss_N, sums)
