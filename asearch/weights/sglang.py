"""What SGLang's `/weights_checker` tells of published weights that it holds, computed from the files alone.

SGLang 0.5.23 keeps query, key and value as one parameter and gate and up as another, fills vocabulary and intermediate size up
with zeros to multiples of 64 and 32, and tells of a parameter the first eight bytes of SHA-256 (`srt/models/qwen3.py`,
`srt/layers/vocab_parallel_embedding.py`, `srt/configs/update_config.py`, `srt/managers/mm_utils.py`).
That holds on a CPU, for one rank, dense models and parameters of float32; of anything else it tells something else, and the
comparison fails.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from asearch.errors import TransferError
from asearch.weights.checking import BLOCK_BYTES, file_places
from asearch.weights.layout import TensorPlace

FILE = "held-by-sglang.json"
"""Name under which a source of weights answers with it."""
MAX_BYTES = 64 << 20
_FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
_ROWS_OF = {"embed_tokens": 64, "lm_head": 64, "gate_proj": 32, "up_proj": 32}
"""Modules whose outputs are filled up to a multiple, and"""
_COLUMNS_OF = {"down_proj": 32}
"""those whose inputs are."""


class HeldWeights(msgspec.Struct, frozen=True):
    """Checksums of the same bytes, read once."""

    tensors: dict[str, str]
    """xxh3-128 by tensor, as announcements have it."""
    parameters: dict[str, str]
    """What SGLang tells, by parameter."""


def held_weights(folder: Path, files: Iterable[str]) -> HeldWeights:
    """Read the safetensors files of `folder`. Raises OSError, ChecksumError, TransferError for types that are not loaded so."""
    parts: dict[str, dict[int, tuple[Path, TensorPlace]]] = {}
    for file in files:
        for place in file_places(folder / file):
            parameter, turn = _parameter(place.extent.name)
            parts.setdefault(parameter, {})[turn] = (folder / file, place)
    tensors: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for parameter, of in parts.items():
        whole = hashlib.sha256()
        for _, (path, place) in sorted(of.items()):
            tensors[place.extent.name] = _hash(path, place, whole.update)
        parameters[parameter] = whole.digest()[:8].hex()
    return HeldWeights(tensors, parameters)


def _parameter(name: str) -> tuple[str, int]:
    """Where SGLang puts a tensor: the parameter, and the tensor's turn within it."""
    words = name.split(".")
    for at, word in enumerate(words):
        if word in _FUSED:
            fused, turn = _FUSED[word]
            return ".".join([*words[:at], fused, *words[at + 1 :]]), turn
    return name, 0


def _hash(path: Path, place: TensorPlace, take: Callable[[bytes], None]) -> str:
    """xxh3-128 of a tensor's bytes; `take` gets them as float32 and filled up."""
    widen = _WIDEN.get(place.dtype)
    if widen is None:
        raise TransferError(f"{place.extent.name} is of type {place.dtype}, of which SGLang's checksum is not known")
    n_rows, n_columns, n_new_rows, n_new_columns = _sizes(place)
    own = xxhash.xxh3_128()
    n_left = place.extent.end - place.extent.start
    row_bytes = n_left // n_rows if n_new_columns and n_rows else 1
    with path.open("rb", buffering=0) as file:
        file.seek(place.extent.start)
        while n_left:
            n_bytes = min(max(1, BLOCK_BYTES // row_bytes) * row_bytes, n_left)
            data = file.read(n_bytes)
            if len(data) < n_bytes:
                raise TransferError(f"{path} was cut while it was read")
            own.update(data)
            wide = widen(data)
            if n_new_columns:
                wide = np.pad(np.frombuffer(wide, "<f4").reshape(-1, n_columns), ((0, 0), (0, n_new_columns))).tobytes()
            take(wide)
            n_left -= n_bytes
    take(bytes(4 * n_new_rows * n_columns))
    return own.hexdigest()


def _sizes(place: TensorPlace) -> tuple[int, int, int, int]:
    """Rows, columns, rows that are added, columns that are added; a vector is a column."""
    n_rows, n_columns = place.shape[0] if place.shape else 1, math.prod(place.shape[1:])
    module = place.extent.name.split(".")[-2:][0]
    n_new_rows = -n_rows % _ROWS_OF.get(module, 1)
    n_new_columns = -n_columns % _COLUMNS_OF.get(module, 1) if len(place.shape) > 1 else 0
    return n_rows, n_columns, n_new_rows, n_new_columns


def _from_bf16(data: bytes) -> bytes:
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).tobytes()


def _from_f16(data: bytes) -> bytes:
    return np.frombuffer(data, "<f2").astype("<f4").tobytes()


def _as_is(data: bytes) -> bytes:
    return data


_WIDEN: dict[str, Callable[[bytes], bytes]] = {"F32": _as_is, "BF16": _from_bf16, "F16": _from_f16}
