"""Scores in [0, 1] of an answer against references."""

from collections import Counter
from collections.abc import Callable, Sequence

from asearch.rewards.normalise import Normaliser

Score = Callable[[str, str, Normaliser], float]
"""(prediction, reference, variant) → score."""

AUG_WEIGHT = 0.3


def f1(prediction: str, reference: str, variant: Normaliser) -> float:
    """Harmonic mean of word precision and recall; words as a set or a multiset, as the variant says."""
    predicted = Counter(variant.words(prediction, reference))
    wanted = Counter(variant.words(reference, reference))
    n_shared = (predicted & wanted).total()
    return 2.0 * n_shared / (predicted.total() + wanted.total()) if n_shared else 0.0


def exact_match(prediction: str, reference: str, variant: Normaliser) -> float:
    """1 if both are the same after normalisation."""
    text = variant.comparable(prediction)
    return float(bool(text) and text == variant.comparable(reference))


def cover_words(prediction: str, reference: str, variant: Normaliser) -> float:
    """Cover exact match of ASearcher's evaluation: 1 if every word of the reference occurs in the prediction, in any order."""
    wanted = set(variant.words(reference, reference))
    return float(bool(wanted) and wanted <= set(variant.words(prediction, reference)))


def cover_text(prediction: str, reference: str, variant: Normaliser) -> float:
    """Cover exact match of R1-Searcher: 1 if the words of the reference stand together, in order, in the prediction."""
    wanted = variant.comparable(reference)
    return float(bool(wanted) and f" {wanted} " in f" {variant.comparable(prediction)} ")


def best(score: Score, prediction: str | None, references: Sequence[str], variant: Normaliser) -> float:
    """The best score over all references; 0 without a prediction or without references."""
    if prediction is None or not prediction.strip():
        return 0.0
    return max((score(prediction, reference, variant) for reference in references), default=0.0)


def best_with_aug(
    score: Score,
    prediction: str | None,
    references: Sequence[str],
    aug_references: Sequence[str],
    variant: Normaliser,
    aug_weight: float = AUG_WEIGHT,
) -> float:
    """ASearcher's rule for alternative references: 0.7 × score + 0.3 × max(score, score of the alternatives)."""
    plain = best(score, prediction, references, variant)
    if not aug_references:
        return plain
    widened = max(plain, best(score, prediction, aug_references, variant))
    return (1.0 - aug_weight) * plain + aug_weight * widened
