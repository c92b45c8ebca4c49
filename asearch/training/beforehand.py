"""What is computed of a batch under the weights that an update begins from."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from asearch.learning.advantages import STD_FLOOR
from asearch.learning.gae import gae
from asearch.learning.normalisation import TokenWeights
from asearch.training.batch import Batch, TrainingSequence
from asearch.training.learner import Learner
from asearch.training.microbatch import NOTHING, Known, MicroBatch, micro_batches, order_of
from asearch.training.part import Part
from asearch.training.recorded import Logprobs
from asearch.training.totals import filled_in

ByPart = list[list[Tensor] | None]
"""For each part one (N,) tensor a sequence of this replica; None where another pipeline stage has them."""


def packed(learner: Learner, batch: Batch, part: Part, known: Known = NOTHING) -> list[MicroBatch]:
    """The micro-batches of this replica."""
    return micro_batches(part.mine, batch.advantages, part.weights, learner.settings.token_budget, known, learner.split)


def packed_for_critic(learner: Learner, batch: Batch, part: Part, known: Known = NOTHING) -> list[MicroBatch]:
    """The same sequences, every token with the same weight, whatever the normalisation of the policy's loss is."""
    weights = TokenWeights([1.0] * len(part.mine), part.n_tokens)
    return micro_batches(part.mine, batch.advantages, weights, learner.settings.token_budget, known, learner.split)


def by_sequence(learner: Learner, sequences: Sequence[TrainingSequence], by_micro_batch: Sequence[Tensor]) -> Logprobs:
    """Sequences with their part of what is known of each micro-batch; nothing where nothing is."""
    if not sequences or not by_micro_batch:
        return []
    order = order_of(sequences, learner.settings.token_budget)
    parts = torch.cat(list(by_micro_batch)).split([len(sequences[i].trained_N) for i in order])
    found = dict(zip(order, parts, strict=True))
    return [(sequence, found[i]) for i, sequence in enumerate(sequences)]


def known_to_all(learner: Learner, batch: Batch, known: Logprobs) -> Logprobs:
    """What each rank knows of the sequences of its replica, of all sequences of the batch, in its order, on every rank."""
    lengths = [len(s.trained_N) for s in batch.sequences]
    starts = dict(zip(map(id, batch.sequences), accumulate(lengths, initial=0), strict=False))
    values_N = torch.zeros(sum(lengths))
    for sequence, found_N in known:
        start = starts[id(sequence)]
        values_N[start : start + len(sequence.trained_N)] = found_N.detach().float().cpu()
    return list(zip(batch.sequences, filled_in(values_N, learner.place, learner.device).split(lengths), strict=True))


def known_of(learner: Learner, batch: Batch, parts: Sequence[Part], with_proximal: bool) -> list[Known]:
    """What the parts of an update need: log-probabilities before it and of the reference policy, and what a critic says."""
    nothing: ByPart = [None for _ in parts]
    proximal = (
        [_in_order(learner, part, learner.logprobs(packed(learner, batch, part))) for part in parts] if with_proximal else nothing
    )
    reference = nothing
    if learner.reference is not None:
        reference = [
            _in_order(learner, part, learner.logprobs(packed(learner, batch, part), learner.reference)) for part in parts
        ]
    advantages, values, returns = _from_critic(learner, batch, parts) or (nothing, nothing, nothing)
    return [Known(*each) for each in zip(proximal, reference, advantages, values, returns, strict=True)]


def _in_order(learner: Learner, part: Part, by_micro_batch: Sequence[Tensor]) -> list[Tensor] | None:
    if not learner.place.is_last_stage:
        return None
    return [found_N for _, found_N in by_sequence(learner, part.mine, by_micro_batch)]


def _from_critic(learner: Learner, batch: Batch, parts: Sequence[Part]) -> tuple[ByPart, ByPart, ByPart] | None:
    """Advantages, values and returns by token. Segments of an episode may be with several replicas: all know the whole batch."""
    critic = learner.critic
    if critic is None:
        return None
    known: Logprobs = [
        pair for part in parts for pair in by_sequence(learner, part.mine, critic.values(packed_for_critic(learner, batch, part)))
    ]
    values = [value_N for _, value_N in known_to_all(learner, batch, known)]
    estimates = _estimated(learner, batch, values)
    advantages = [advantage_N for advantage_N, _ in estimates]
    if learner.algorithm.normalise_advantages:
        flat_N = torch.cat(advantages)
        mean, std = flat_N.mean(), flat_N.std(correction=0)
        advantages = [(a_N - mean) / std.clamp_min(STD_FLOOR) for a_N in advantages]
    number = {id(sequence): i for i, sequence in enumerate(batch.sequences)}

    def of_parts(found: Sequence[Tensor]) -> ByPart:
        return [[found[number[id(sequence)]].float() for sequence in part.mine] for part in parts]

    return of_parts(advantages), of_parts(values), of_parts([return_N for _, return_N in estimates])


def _estimated(learner: Learner, batch: Batch, values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Advantages and returns (N,) of each sequence, in float64. The reward of an episode stands in `batch.advantages`."""
    algorithm = learner.algorithm
    found: dict[int, tuple[Tensor, Tensor]] = {}
    members: dict[int, list[int]] = {}
    for number, sequence in enumerate(batch.sequences):
        members.setdefault(sequence.episode, []).append(number)
    for episode, numbers in members.items():
        whole = torch.cat([values[number] for number in numbers]).tolist()
        estimate = gae(whole, batch.advantages[episode], algorithm.gamma, algorithm.gae_lambda)
        lengths = [len(values[number]) for number in numbers]
        columns = (torch.tensor(column, dtype=torch.float64).split(lengths) for column in estimate)
        found |= dict(zip(numbers, zip(*columns, strict=True), strict=True))
    return [found[number] for number in range(len(values))]
