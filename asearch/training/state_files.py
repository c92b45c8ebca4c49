"""Files of a rank's share of a checkpoint, written durably."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import xxhash
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from asearch.errors import StorageError
from asearch.models.weights import checksum
from asearch.training.fragments import METADATA, Description, Part

_HASH_CHUNK_BYTES = 1 << 22


@dataclass
class State:
    """What a rank writes: tensors by file and name, and what they are parts of."""

    tensors: dict[str, dict[str, Tensor]]
    parts: dict[str, dict[str, Part]] = field(default_factory=dict[str, dict[str, Part]])
    n_ranks: int = 1


def write_state(state: State, folder: Path) -> dict[str, tuple[int, str]]:
    """Write tensors into the existing `folder`, every file fsynced. Returns size and xxh3-128 of each file by name.

    Raises StorageError.
    """
    try:
        for name, held in state.tensors.items():
            tensors = {key: tensor.cpu().contiguous() for key, tensor in held.items()}
            parts = {
                key: msgspec.structs.replace(part, checksum=checksum(tensors[key]))
                for key, part in state.parts.get(name, {}).items()
            }
            # One entry, sorted, so that the same state is the same bytes: safetensors writes several in no particular order.
            described = msgspec.json.encode(Description(state.n_ranks, parts), order="sorted").decode()
            save_file(tensors, folder / name, {METADATA: described} if parts else None)
            sync(folder / name)
        sync(folder)
        return {name: ((folder / name).stat().st_size, _hash(folder / name)) for name in state.tensors}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {folder}: {error}") from error


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
