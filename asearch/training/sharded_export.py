"""Weights out of a parallel trainer: every weight is gathered to one rank, and every rank writes what was gathered to it.

No rank ever holds more than its own share of the folder and one weight more. Which rank a weight is gathered to follows from
the model alone, so that all ranks know it without talking.
"""

from pathlib import Path
from typing import cast

import msgspec
import torch
from megatron.core import parallel_state
from safetensors import SafetensorError
from torch import Tensor, distributed

from asearch.errors import StorageError
from asearch.models.config import ModelConfig
from asearch.models.weights import TensorEntry, WeightManifest, save_index, save_shard
from asearch.training.agreement import agreed
from asearch.training.mapping import Position


class Piece(msgspec.Struct, frozen=True):
    """What one rank wrote."""

    file: str
    size_bytes: int
    tensors: dict[str, TensorEntry]


def gather_over_tensor_ranks(tensor: Tensor, rank: int) -> list[Tensor] | None:
    """`asearch.training.gathering.Gather` by megatron's tensor-parallel group."""
    group = cast("distributed.ProcessGroup", parallel_state.get_tensor_model_parallel_group())
    held = tensor.detach().contiguous()
    here = parallel_state.get_tensor_model_parallel_rank() == rank
    shards = [torch.empty_like(held) for _ in range(group.size())] if here else None
    distributed.gather(held, shards, group=group, group_dst=rank)
    return shards


def write_shards(own: dict[str, Tensor], folder: Path, position: Position, model: ModelConfig, fsync: bool) -> WeightManifest:
    """Write every rank's share below the existing `folder`, then index and manifest. All ranks call it.

    Returns the manifest of all on rank 0, of its own file on the others. Raises StorageError on all ranks if one cannot.
    """
    file = f"model-{position.rank + 1:05d}-of-{position.n_ranks:05d}.safetensors"
    piece = Piece(file, 0, {})
    with agreed(f"write its weights to {folder}", StorageError):
        try:
            if own:
                size_bytes, entries = save_shard(folder / file, own, fsync)
                piece = Piece(file, size_bytes, entries)
            _piece_path(folder, position.rank).write_bytes(msgspec.json.encode(piece))
        except SafetensorError as error:
            raise StorageError(f"cannot write {folder / file}: {error}") from error
    manifest = WeightManifest({file: piece.size_bytes} if own else {}, piece.tensors)
    with agreed(f"write the index of {folder}", StorageError):
        if position.rank == 0:
            manifest = _index(folder, position.n_ranks, model)
    return manifest


def _index(folder: Path, n_ranks: int, model: ModelConfig) -> WeightManifest:
    paths = [_piece_path(folder, rank) for rank in range(n_ranks)]
    pieces = [msgspec.json.decode(path.read_bytes(), type=Piece) for path in paths]
    for path in paths:
        path.unlink()
    found = {name: entry for piece in pieces for name, entry in piece.tensors.items()}
    if found.keys() != model.shapes().keys():
        odd = sorted(found.keys() ^ model.shapes().keys())
        raise StorageError(f"the ranks' shares do not make up the model folder {folder}: {', '.join(odd[:3])}")
    files = {piece.file: piece.size_bytes for piece in pieces if piece.tensors}
    manifest = WeightManifest(files, {name: found[name] for name in model.shapes()})
    save_index(folder, manifest)
    return manifest


def _piece_path(folder: Path, rank: int) -> Path:
    return folder / f".rank{rank}.json"
