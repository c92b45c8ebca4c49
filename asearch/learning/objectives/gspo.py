"""GSPO: one ratio for a whole sequence."""

from asearch.learning.objectives.clip import surrogate
from asearch.learning.objectives.segments import segment_mean
from asearch.learning.objectives.tokens import MAX_LOG_RATIO, LossTokens, Objective, ObjectiveLoss, objectives
from asearch.learning.presets import Algorithm


def sequence_ratio(tokens: LossTokens, algorithm: Algorithm) -> ObjectiveLoss:
    """-min(s·A, clip(s, 1 - clip_low, 1 + clip_high)·A), s = exp(mean over the segment's tokens of log π_θ/π_old).

    GSPO (arXiv 2507.18071, Eq. 5 and 7). The ratio is that of GSPO-token (Eq. 14), sg(s)·π_θ/sg(π_θ): the same value, and under
    a normalisation that weighs the tokens of a segment alike the same gradient, also where advantages differ by token.
    """
    log_ratio_N = tokens.logprobs_N.detach() - tokens.old_logprobs(algorithm)
    mean_N = segment_mean(log_ratio_N, tokens.segment_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    carried_N = (tokens.logprobs_N - tokens.logprobs_N.detach()).exp()
    return surrogate(mean_N.exp() * carried_N, tokens.advantages_N, algorithm)


objectives.register("gspo")(Objective(sequence_ratio))
