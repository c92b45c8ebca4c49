"""Micro-batches: packed tensors of the sequences that one forward pass takes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from asearch.learning.normalisation import TokenWeights
from asearch.learning.packing import pack
from asearch.training.attention import PackedLayout, packed_layout
from asearch.training.batch import TrainingSequence
from asearch.training.context import WHOLE, ContextLayout, HeldTokens, Split, context_layout


@dataclass(frozen=True, slots=True)
class Known:
    """What was computed of sequences before an update, one (N,) tensor of loss tokens a sequence; None: nothing."""

    proximal: Sequence[Tensor] | None = None
    reference: Sequence[Tensor] | None = None
    advantages: Sequence[Tensor] | None = None
    """By token; None: those of the episodes."""
    values: Sequence[Tensor] | None = None
    returns: Sequence[Tensor] | None = None


NOTHING = Known()


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """T packed input tokens and the N tokens that a loss is taken over, in packed order.

    The last token of a sequence is a target only, so it is not among the inputs. Ranks that share sequences have inputs and
    rows of their own, and all of what is by loss token.
    """

    ids_T: Tensor
    layout: PackedLayout | ContextLayout
    rows_N: Tensor
    """Input token whose logits predict the loss token, of those that this rank holds."""
    targets_N: Tensor
    behaviour_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    segment_N: Tensor
    episode_N: Tensor
    group_N: Tensor
    proximal_N: Tensor | None
    reference_N: Tensor | None
    values_N: Tensor | None
    """A critic's values before the update."""
    returns_N: Tensor | None
    """What a critic is to learn."""
    divisor: int
    """The batch's divisor in its first micro-batch, else 0: megatron divides by the sum over micro-batches and ranks."""
    held: HeldTokens | None = None
    """Which loss tokens this rank holds; None: all."""
    is_dummy: bool = False
    """Whether it only keeps step with other ranks: nothing in it counts."""

    def on(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        if device.type == "cpu":
            return self
        return replace(self, **_moved(self, device), layout=replace(self.layout, **_moved(self.layout, device)))

    @property
    def held_targets(self) -> Tensor:
        """Targets of the loss tokens that this rank holds."""
        return self.targets_N if self.held is None else self.targets_N[self.held.held_M.to(self.targets_N.device)]


def _moved(of: "MicroBatch | PackedLayout | ContextLayout", device: torch.device) -> dict[str, Any]:
    values = {field.name: getattr(of, field.name) for field in fields(of) if field.init}
    return {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}


def micro_batches(
    sequences: Sequence[TrainingSequence],
    advantages: Sequence[float],
    weights: TokenWeights,
    token_budget: int,
    known: Known = NOTHING,
    split: Split = WHOLE,
) -> list[MicroBatch]:
    """Pack `sequences` (each with at least one loss token), of which `known` is known.

    Without sequences it is one dummy, because the ranks of a group take part in every pass.
    """
    if not sequences:
        return [_dummy(weights.divisor, split)]
    packed = pack([len(s.ids_T) - 1 for s in sequences], token_budget)
    result: list[MicroBatch] = []
    for number, members in enumerate(packed):
        result.append(_micro_batch(sequences, members, advantages, weights, known, split, first=number == 0))
    return result


def _dummy(divisor: int, split: Split) -> MicroBatch:
    nothing = TrainingSequence(np.zeros(2, np.int64), np.ones(1, np.int64), np.zeros(1, np.float32), 0, 0, "")
    made = _micro_batch([nothing], [0], [0.0], TokenWeights([0.0], divisor), NOTHING, split, first=True)
    return replace(made, is_dummy=True)


def order_of(sequences: Sequence[TrainingSequence], token_budget: int) -> list[int]:
    """Sequence numbers in the order in which `micro_batches` packs them."""
    return [index for members in pack([len(s.ids_T) - 1 for s in sequences], token_budget) for index in members]


def _micro_batch(
    sequences: Sequence[TrainingSequence],
    members: list[int],
    advantages: Sequence[float],
    weights: TokenWeights,
    known: Known,
    split: Split,
    first: bool,
) -> MicroBatch:
    chosen = [sequences[i] for i in members]
    lengths = [len(s.ids_T) - 1 for s in chosen]
    starts = np.cumsum([0, *lengths[:-1]])
    counts = [len(s.trained_N) for s in chosen]

    def spread(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.repeat_interleave(torch.tensor(values, dtype=dtype), torch.tensor(counts))

    def joined(values: Sequence[Tensor] | None) -> Tensor | None:
        return None if values is None else torch.cat([values[i] for i in members])

    advantages_N = joined(known.advantages)
    rows = np.concatenate([start + s.trained_N - 1 for start, s in zip(starts, chosen, strict=True)])
    ids_T, layout, rows_N, held = _laid_out(
        torch.from_numpy(np.concatenate([s.ids_T[:-1] for s in chosen])), lengths, torch.from_numpy(rows), split
    )
    return MicroBatch(
        ids_T=ids_T,
        layout=layout,
        rows_N=rows_N,
        targets_N=torch.from_numpy(np.concatenate([s.ids_T[s.trained_N] for s in chosen])),
        behaviour_N=torch.from_numpy(np.concatenate([s.behaviour_N for s in chosen])),
        advantages_N=spread([advantages[s.episode] for s in chosen], torch.float32) if advantages_N is None else advantages_N,
        weights_N=spread([weights.by_segment[i] for i in members], torch.float32),
        segment_N=spread(members, torch.int64),
        episode_N=spread([s.episode for s in chosen], torch.int64),
        group_N=spread([s.group for s in chosen], torch.int64),
        proximal_N=joined(known.proximal),
        reference_N=joined(known.reference),
        values_N=joined(known.values),
        returns_N=joined(known.returns),
        divisor=weights.divisor if first else 0,
        held=held,
    )


def _laid_out(
    ids_T: Tensor, lengths: list[int], rows_N: Tensor, split: Split
) -> tuple[Tensor, PackedLayout | ContextLayout, Tensor, HeldTokens | None]:
    """This rank's part of packed tokens and of the rows at which logits are taken."""
    if split.context_size > 1:
        layout, rows_M, held = context_layout(lengths, rows_N, split)
        return ids_T[layout.source_T], layout, rows_M, held
    # Sequence parallelism divides the tokens over the ranks of a tensor-parallel group. What is added follows all real
    # tokens of the last sequence, so that none of them sees it.
    missing = -len(ids_T) % split.tensor_size
    if missing:
        ids_T = pad(ids_T, (0, missing))
        lengths = [*lengths[:-1], lengths[-1] + missing]
    return ids_T, packed_layout(lengths), rows_N, None
