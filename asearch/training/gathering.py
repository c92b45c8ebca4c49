"""Which rank gets which weights together when a parallel trainer writes a model folder."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from asearch.learning.packing import spread
from asearch.models.config import ModelConfig
from asearch.training.mapping import EMBEDDING, Position, global_name, is_divided, known_hf_names, merged

Gather = Callable[[Tensor, int], list[Tensor] | None]
"""Shards of a tensor, in order, on the tensor-parallel rank that is named; None on the others."""


def holders(sizes: Sequence[int], n: int) -> list[int]:
    """Which of `n` holders takes each of the things of `sizes`, so that each gets about the same. Same on every rank."""
    chosen = [0] * len(sizes)
    for holder, share in enumerate(spread(sizes, n)):
        for number in share:
            chosen[number] = holder
    return chosen


def gathered(weights: Iterable[tuple[str, Tensor]], model: ModelConfig, position: Position, gather: Gather) -> dict[str, Tensor]:
    """On CPU the Hugging Face tensors that fall to this rank, of the `weights` of its stage by megatron's local name.

    All ranks of a stage call it with the same names in the same order. Raises InputError for a name that is not of the model.
    """
    place = position.placement
    here = [(global_name(local, model, place), tensor) for local, tensor in weights]
    # Of a tied embedding the first stage exports.
    here = [(name, tensor) for name, tensor in here if name != EMBEDDING or place.pipeline_rank == 0]
    sizes = [tensor.numel() * (place.tensor_size if is_divided(name) else 1) for name, tensor in here]
    # Data-parallel replicas hold the same: each serves a part of the weights to its own tensor-parallel group.
    owners = holders(sizes, place.tensor_size * position.n_replicas)
    own: dict[str, Tensor] = {}
    for (name, tensor), owner in zip(here, owners, strict=True):
        replica, rank = divmod(owner, place.tensor_size)
        if replica != position.replica:
            continue
        shards = gather(tensor, rank) if is_divided(name) and place.tensor_size > 1 else [tensor]
        if shards is not None and rank == place.tensor_rank:
            values = merged(name, shards, model)
            own.update((each, value.cpu().clone()) for each, value in zip(known_hf_names(name), values, strict=True))
    return own
