"""Micro-batches: packed tensors of the sequences that one forward pass takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asearch.learning.normalisation import TokenWeights
from asearch.learning.packing import pack
from asearch.training.attention import PackedLayout, packed_layout
from asearch.training.batch import TrainingSequence


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """T packed input tokens and the N tokens that a loss is taken over, in packed order.

    The last token of a sequence is a target only, so it is not among the inputs.
    """

    ids_T: Tensor
    layout: PackedLayout
    rows_N: Tensor
    """Input token whose logits predict the loss token."""
    targets_N: Tensor
    behaviour_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    segment_N: Tensor
    episode_N: Tensor
    group_N: Tensor
    proximal_N: Tensor | None
    divisor: int
    """The batch's divisor in its first micro-batch, else 0: megatron divides by the sum over micro-batches."""


def micro_batches(
    sequences: Sequence[TrainingSequence],
    advantages: Sequence[float],
    weights: TokenWeights,
    token_budget: int,
    proximal: Sequence[Tensor] | None = None,
) -> list[MicroBatch]:
    """Pack `sequences` (each with at least one loss token); `proximal` holds one (N,) tensor a sequence, if known."""
    packed = pack([len(s.ids_T) - 1 for s in sequences], token_budget)
    result: list[MicroBatch] = []
    for number, members in enumerate(packed):
        result.append(_micro_batch(sequences, members, advantages, weights, proximal, first=number == 0))
    return result


def order_of(sequences: Sequence[TrainingSequence], token_budget: int) -> list[int]:
    """Sequence numbers in the order in which `micro_batches` packs them."""
    return [index for members in pack([len(s.ids_T) - 1 for s in sequences], token_budget) for index in members]


def _micro_batch(
    sequences: Sequence[TrainingSequence],
    members: list[int],
    advantages: Sequence[float],
    weights: TokenWeights,
    proximal: Sequence[Tensor] | None,
    first: bool,
) -> MicroBatch:
    chosen = [sequences[i] for i in members]
    lengths = [len(s.ids_T) - 1 for s in chosen]
    starts = np.cumsum([0, *lengths[:-1]])
    counts = [len(s.trained_N) for s in chosen]

    def spread(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.repeat_interleave(torch.tensor(values, dtype=dtype), torch.tensor(counts))

    rows = np.concatenate([start + s.trained_N - 1 for start, s in zip(starts, chosen, strict=True)])
    return MicroBatch(
        ids_T=torch.from_numpy(np.concatenate([s.ids_T[:-1] for s in chosen])),
        layout=packed_layout(lengths),
        rows_N=torch.from_numpy(rows),
        targets_N=torch.from_numpy(np.concatenate([s.ids_T[s.trained_N] for s in chosen])),
        behaviour_N=torch.from_numpy(np.concatenate([s.behaviour_N for s in chosen])),
        advantages_N=spread([advantages[s.episode] for s in chosen], torch.float32),
        weights_N=spread([weights.by_segment[i] for i in members], torch.float32),
        segment_N=spread(members, torch.int64),
        episode_N=spread([s.episode for s in chosen], torch.int64),
        group_N=spread([s.group for s in chosen], torch.int64),
        proximal_N=None if proximal is None else torch.cat([proximal[i] for i in members]),
        divisor=weights.divisor if first else 0,
    )
