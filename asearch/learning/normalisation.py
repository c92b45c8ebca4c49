"""How the losses of single tokens become one number: a weight per token and a divisor, by name. Plain numbers, no tensors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from asearch.registry import Registry


class TokenWeights(NamedTuple):
    """Weight of every loss token of each segment, and the divisor of the weighted sum over the batch."""

    by_segment: list[float]
    divisor: int


Normalisation = Callable[[Sequence[int], Sequence[int], int], TokenWeights]
"""(loss tokens of each segment, episode number of each segment, constant length) -> weights. Segments without loss tokens count
for nothing."""

normalisations: Registry[Normalisation] = Registry("normalisation")


@normalisations.register("token")
def token(n_tokens: Sequence[int], episodes: Sequence[int], length: int) -> TokenWeights:
    """The mean over all loss tokens of the batch: long episodes weigh more (DAPO, arXiv 2503.14476, §3.3)."""
    del episodes, length
    return TokenWeights([1.0] * len(n_tokens), sum(n_tokens))


@normalisations.register("sequence")
def sequence(n_tokens: Sequence[int], episodes: Sequence[int], length: int) -> TokenWeights:
    """The mean over segments of the mean over their loss tokens (GRPO, arXiv 2402.03300)."""
    del episodes, length
    return TokenWeights([1.0 / n if n else 0.0 for n in n_tokens], sum(1 for n in n_tokens if n))


@normalisations.register("episode")
def episode(n_tokens: Sequence[int], episodes: Sequence[int], length: int) -> TokenWeights:
    """The mean over episodes of the mean over their loss tokens, however many segments an episode has."""
    del length
    totals: dict[int, int] = {}
    for n, number in zip(n_tokens, episodes, strict=True):
        totals[number] = totals.get(number, 0) + n
    weights = [1.0 / totals[number] if totals[number] else 0.0 for number in episodes]
    return TokenWeights(weights, sum(1 for total in totals.values() if total))


@normalisations.register("constant")
def constant(n_tokens: Sequence[int], episodes: Sequence[int], length: int) -> TokenWeights:
    """The mean over episodes of the sum over their loss tokens, over one `length` for all (Dr. GRPO, arXiv 2503.20783, §3.2).

    No token weighs less for being in a long episode. The constant only scales the gradient.
    """
    return TokenWeights([1.0 / length] * len(n_tokens), len({number for n, number in zip(n_tokens, episodes, strict=True) if n}))
