"""A part of a batch that one optimizer step takes, and what of it the replica of this rank takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from asearch.learning.normalisation import TokenWeights, normalisations
from asearch.learning.packing import pack, spread
from asearch.learning.presets import Algorithm
from asearch.training.batch import TrainingSequence
from asearch.training.parallel import Coordinates


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences of one optimizer step."""

    shares: list[list[TrainingSequence]]
    """By replica, with about the same number of tokens each."""
    replica: int
    weights: TokenWeights
    """Of this replica's sequences; the divisor is that of all."""

    @property
    def mine(self) -> list[TrainingSequence]:
        """The sequences that this rank's replica takes."""
        return self.shares[self.replica]

    @property
    def n_tokens(self) -> int:
        """Loss tokens of all replicas."""
        return sum(len(sequence.trained_N) for share in self.shares for sequence in share)

    def n_micro_batches(self, token_budget: int) -> int:
        """Micro-batches of all replicas; one without sequences takes part with an empty one."""
        return sum(max(1, len(pack([len(s.ids_T) - 1 for s in share], token_budget))) for share in self.shares)


def part_of(sequences: Sequence[TrainingSequence], algorithm: Algorithm, place: Coordinates) -> Part:
    """Weigh `sequences` together and spread them over the replicas."""
    weigh = normalisations.get(algorithm.normalisation)
    whole = weigh([len(s.trained_N) for s in sequences], [s.episode for s in sequences], algorithm.constant_length)
    numbers = [list(range(len(sequences)))]
    if place.data_size > 1:
        numbers = spread([len(s.ids_T) for s in sequences], place.data_size)
    weights = [whole.by_segment[i] for i in numbers[place.data_rank]]
    shares = [[sequences[i] for i in share] for share in numbers]
    return Part(shares, place.data_rank, TokenWeights(weights, whole.divisor))
