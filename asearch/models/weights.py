"""Weights of a Hugging Face folder: safetensors files, written durably and checked by per-tensor checksums."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asearch.errors import InputError
from asearch.models.config import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MANIFEST_FILE = "weights.manifest.json"


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor of a manifest."""

    file: str
    dtype: str
    """As torch names it, without the prefix: `float32`, `bfloat16`."""
    shape: tuple[int, ...]
    xxh3_128: str
    """Hexadecimal xxh3-128 of the row-major little-endian bytes."""


class WeightManifest(msgspec.Struct, frozen=True):
    """What a weights folder holds; written last, so that a folder with a manifest is complete."""

    files: dict[str, int]
    """Name of each safetensors file and its size in bytes."""
    tensors: dict[str, TensorEntry]

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def checksum(tensor: Tensor) -> str:
    """xxh3-128 of the bytes of `tensor` (any shape, any dtype, on CPU), in hexadecimal."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_128_hexdigest(data.data)


def save_weights(folder: str | Path, tensors: Mapping[str, Tensor], shard_bytes: int = 4 << 30) -> WeightManifest:
    """Writes `tensors` into `folder` as safetensors (one file, or shards of at most `shard_bytes` with an index).

    Every file and the folder are fsynced; the manifest is written last. Returns the manifest.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shard_bytes)
    files: dict[str, int] = {}
    entries: dict[str, TensorEntry] = {}
    for i, names in enumerate(shards):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        files[file], held = save_shard(folder / file, {name: tensors[name] for name in names})
        entries |= held
    manifest = WeightManifest(files, entries)
    save_index(folder, manifest)
    return manifest


def save_shard(path: Path, tensors: Mapping[str, Tensor], fsync: bool = True) -> tuple[int, dict[str, TensorEntry]]:
    """Writes one file of a folder. Returns its size in bytes and its entries of the manifest."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, path, metadata={"format": "pt"})
    if fsync:
        _fsync(path)
    entries = {
        name: TensorEntry(path.name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), checksum(tensor))
        for name, tensor in held.items()
    }
    return path.stat().st_size, entries


def save_index(folder: Path, manifest: WeightManifest) -> None:
    """Writes the index of a folder of several files, then the manifest; every file and the folder are fsynced."""
    if manifest.files.keys() != {SINGLE_FILE}:
        total = sum(math.prod(e.shape) * getattr(torch, e.dtype).itemsize for e in manifest.tensors.values())
        weight_map = {name: entry.file for name, entry in manifest.tensors.items()}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write(folder / INDEX_FILE, msgspec.json.encode(index))
    _write(folder / MANIFEST_FILE, msgspec.json.encode(manifest))
    _fsync(folder)


def load_weights(folder: str | Path, config: ModelConfig | None = None, verify: bool = True) -> dict[str, Tensor]:
    """Reads all tensors of `folder` on CPU, in the dtypes that are stored.

    With `config`, names and shapes must be exactly those of the architecture (a tied model may repeat the embedding
    as `lm_head.weight`, which is left out). With `verify`, a manifest beside the weights must agree. Raises
    `InputError` for anything missing, extra, corrupt or of the wrong shape.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            with safe_open(folder / file, framework="pt", device="cpu") as held:
                for name in held.keys():  # noqa: SIM118  (the object is not a mapping)
                    # A copy, because the mapped file may be replaced or deleted while the tensor is in use.
                    tensors[name] = held.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read weights {folder / file}: {error}") from error
    if verify and (folder / MANIFEST_FILE).is_file():
        _verify(folder, tensors)
    if config is not None:
        if config.tied:
            tensors.pop("lm_head.weight", None)
        check_shapes(tensors, config, str(folder))
    return tensors


class FolderWeights(Mapping[str, Tensor]):
    """The tensors of a weights folder, each read from its file and verified when it is asked for.

    A trainer that reads through it holds one tensor at a time, and a rank of a parallel one reads only what it needs.
    """

    def __init__(self, folder: str | Path, config: ModelConfig) -> None:
        """Reads the headers. Raises `InputError` where names or shapes are not those of the architecture."""
        self._folder = Path(folder)
        self._files: dict[str, str] = {}
        for file in _files(self._folder):
            with self._opened(file) as held:
                self._files |= dict.fromkeys(held.keys(), file)
        has_manifest = (self._folder / MANIFEST_FILE).is_file()
        self._entries = read_manifest(folder).tensors if has_manifest else None
        if self._entries is not None and self._entries.keys() != self._files.keys():
            odd = self._entries.keys() ^ self._files.keys()
            raise InputError(f"weights in {folder} are not those of their manifest: {_some(odd)}")
        if config.tied:
            self._files.pop("lm_head.weight", None)
        check_shape_names(self._shapes(), config, str(folder))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor on CPU, in the dtype that is stored. Raises `InputError` if it is corrupt, KeyError if there is none."""
        file = self._files[name]
        with self._opened(file) as held:
            # A copy, because the mapped file may be replaced or deleted while the tensor is in use.
            tensor = cast("Tensor", held.get_tensor(name)).clone()
        if self._entries is not None and checksum(tensor) != self._entries[name].xxh3_128:
            raise InputError(f"weights in {self._folder} are corrupt: checksum of {name} differs from the manifest")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @contextmanager
    def _opened(self, file: str) -> Generator[Any]:
        try:
            with safe_open(self._folder / file, framework="pt", device="cpu") as held:
                yield held
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read weights {self._folder / file}: {error}") from error

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for file in dict.fromkeys(self._files.values()):
            with self._opened(file) as held:
                names = [name for name, its in self._files.items() if its == file]
                shapes |= {name: tuple(held.get_slice(name).get_shape()) for name in names}
        return shapes


def read_manifest(folder: str | Path) -> WeightManifest:
    """The manifest of a weights folder. Raises `InputError` where it is missing or malformed."""
    path = Path(folder) / MANIFEST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=WeightManifest)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not a weights manifest: {error}") from error


def check_shapes(tensors: Mapping[str, Tensor], config: ModelConfig, where: str) -> None:
    """Refuses with `InputError` a set of tensors whose names or shapes are not those of the architecture."""
    check_shape_names({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, where)


def check_shape_names(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str) -> None:
    """As `check_shapes`, of shapes by name."""
    expected = config.shapes()
    missing, extra = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if missing or extra:
        parts = [f"{kind} {_some(names)}" for kind, names in (("lacks", missing), ("also has", extra)) if names]
        raise InputError(f"weights in {where} do not fit {config.architecture}: the folder {' and '.join(parts)}")
    wrong = [n for n, shape in expected.items() if shapes[n] != shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"weights in {where}: {name} has shape {shapes[name]}, config.json says {expected[name]}"
            + (f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else "")
        )


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held_bytes = 0
    for name, tensor in tensors.items():
        size_bytes = tensor.numel() * tensor.element_size()
        if shards[-1] and held_bytes + size_bytes > shard_bytes:
            shards.append([])
            held_bytes = 0
        shards[-1].append(name)
        held_bytes += size_bytes
    return shards


def _files(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            raw: dict[str, Any] = msgspec.json.decode(index.read_bytes(), type=dict[str, Any])
            return sorted(set(msgspec.convert(raw.get("weight_map"), dict[str, str]).values()))
        except msgspec.MsgspecError as error:
            raise InputError(f"{index} is not a safetensors index: {error}") from error
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    raise InputError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors weights are supported")


def _verify(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    manifest = read_manifest(folder)
    if manifest.tensors.keys() != tensors.keys():
        odd = manifest.tensors.keys() ^ tensors.keys()
        raise InputError(f"weights in {folder} are not those of their manifest: {_some(odd)}")
    for name, entry in manifest.tensors.items():
        if checksum(tensors[name]) != entry.xxh3_128:
            raise InputError(f"weights in {folder} are corrupt: checksum of {name} differs from the manifest")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
