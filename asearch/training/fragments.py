"""Parts of tensors in the files that the ranks of a trainer write, put together for any other number of ranks.

Rank r writes `rank{r}.model.safetensors`, whose tensors have global names (`asearch.training.mapping`), and
`rank{r}.optimizer.safetensors`, whose tensors are named `field/name`, as are those of `rank{r}.critic.safetensors`, where the
weights are one more field. The description of the parts is one JSON entry of the
safetensors header. A file without it is of a trainer of one rank and holds everything whole.
"""

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asearch.errors import CheckpointError
from asearch.models.config import ModelConfig
from asearch.models.weights import checksum
from asearch.training.mapping import Placement, global_name, hf_names, is_divided, merged, shard_of

METADATA = "parts"
WEIGHT = "weight"
RNG = "rng.torch"
HEAD_WEIGHT, HEAD_BIAS = "value_head.weight", "value_head.bias"
"""What a critic has in the place of an output layer; every rank has all of it."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Elements [start, end) of shard `shard` of `n_shards`, flattened, of a tensor that has the shape of a weight."""

    shard: int
    n_shards: int
    shape: tuple[int, ...]
    """Shape of the shard; () where the tensor is a number that belongs to the whole weight."""
    start: int
    end: int
    checksum: str = ""
    """xxh3-128 of its bytes, "" if unknown."""


class Description(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    n_ranks: int
    parts: dict[str, Part]


class Held(msgspec.Struct, frozen=True):
    """A part and where it is."""

    file: str
    key: str
    part: Part


def files_of(rank: int) -> tuple[str, str]:
    """Names of the files with weights and with optimizer state of a rank."""
    return f"rank{rank}.model.safetensors", f"rank{rank}.optimizer.safetensors"


def critic_file_of(rank: int) -> str:
    """Name of the file with a rank's share of a critic."""
    return f"rank{rank}.critic.safetensors"


class CheckpointFiles:
    """All parts that the files of a checkpoint hold. Tensors are put together when they are asked for, one at a time."""

    def __init__(self, folder: Path, model: ModelConfig, of_critic: bool = False) -> None:
        """Reads the headers, those of the policy or of the critic.

        Raises CheckpointError for files that are missing, cannot be read or are of another model.
        """
        self.folder = folder
        self._model = model
        self._of_critic = of_critic
        self._own_shapes = {HEAD_WEIGHT: (1, model.hidden_size), HEAD_BIAS: (1,)} if of_critic else {}
        """Of weights that no model folder has."""
        self._opened: dict[str, Any] = {}
        self._held: dict[tuple[str, str], list[Held]] = {}
        self._rng: dict[int, Held] = {}
        self._hf_shapes = model.shapes()
        if of_critic:
            self._hf_shapes.pop("lm_head.weight", None)
        self._shapes: dict[tuple[str, int], tuple[int, ...]] = {}
        self.n_ranks = self._note(0)
        for rank in range(1, self.n_ranks):
            self._note(rank)
        self.fields = frozenset(field for field, _ in self._held) - {WEIGHT}
        self._check_model()

    def tensor(self, field: str, name: str, rank: int, size: int, verify: bool = False) -> Tensor:
        """What rank `rank` of `size` tensor-parallel ranks holds of a field (or `WEIGHT`) of a weight, in one piece.

        With `verify`, parts are compared with their checksums. Raises CheckpointError that names file and weight where
        something is missing or corrupt.
        """
        held = self._held.get((field, name), [])
        if not held:
            there = _files(self._held[WEIGHT, name])
            raise CheckpointError(f"checkpoint {self.folder} lacks {field} of {name}, whose weight is in {there}")
        if not held[0].part.shape:
            return self._get(held[0], field, name, verify)
        n_shards = held[0].part.n_shards
        if not is_divided(name):
            rank, size = 0, 1
        if n_shards == size:
            return self._shard(field, name, rank, held, verify)
        shards = [self._shard(field, name, shard, held, verify) for shard in range(n_shards)]
        return shard_of(name, merged(name, shards, self._model), self._model, rank, size)

    def rng(self, rank: int, verify: bool = False) -> Tensor | None:
        """State of the random numbers of a rank; None for a rank that the trainer did not have."""
        if rank >= self.n_ranks:
            return None
        if rank not in self._rng:
            raise CheckpointError(f"{self.folder / files_of(rank)[1]} has no RNG state")
        return self._get(self._rng[rank], "RNG state", f"rank {rank}", verify)

    def close(self) -> None:
        """Close the files."""
        self._opened.clear()

    def __enter__(self) -> "CheckpointFiles":
        return self

    def __exit__(self, *_unused: object) -> None:
        self.close()

    def _note(self, rank: int) -> int:
        """Note what the files of a rank hold. Returns the number of ranks that wrote the checkpoint."""
        n_ranks = 1
        files = [(critic_file_of(rank), False)] if self._of_critic else list(zip(files_of(rank), (True, False), strict=True))
        for file, of_weights in files:
            described = self._described(file)
            n_ranks = described.n_ranks
            for key, part in described.parts.items():
                held = Held(file, key, part)
                field, _, name = (WEIGHT, "", key) if of_weights else key.partition("/")
                if key == RNG:
                    self._rng[rank] = held
                else:
                    self._held.setdefault((field, global_name(name, self._model, Placement())), []).append(held)
        return n_ranks

    def _described(self, file: str) -> Description:
        with self._reading(file) as opened:
            said = cast("dict[str, str]", opened.metadata() or {}).get(METADATA)
            keys = cast("list[str]", opened.keys())
            if said is not None:
                described = msgspec.json.decode(said, type=Description)
                if described.parts.keys() != set(keys):
                    raise CheckpointError(f"{self.folder / file} does not hold what its header describes")
                return described
            shapes = {key: tuple(cast("list[int]", opened.get_slice(key).get_shape())) for key in keys}
        return Description(1, {key: Part(0, 1, shape, 0, math.prod(shape)) for key, shape in shapes.items()})

    def _check_model(self) -> None:
        expected = self._hf_shapes
        found: set[str] = set()
        wrong = self._own_shapes.keys() - {name for field, name in self._held if field == WEIGHT}
        for (_, name), held in self._held.items():
            sources = [] if name in self._own_shapes else hf_names(name)
            if sources is None or any(source not in expected for source in sources):
                wrong.add(name)
                continue
            found.update(sources)
            for part in (each.part for each in held):
                if part.shape not in (self._shape(name, part.n_shards), ()):
                    wrong.add(name)
        wrong |= expected.keys() - found
        if wrong:
            what = "critic's state in checkpoint" if self._of_critic else "checkpoint"
            raise CheckpointError(f"the {what} {self.folder} is not of this model: {', '.join(sorted(wrong)[:3])} differ")

    def _shape(self, name: str, size: int) -> tuple[int, ...]:
        """Shape of a shard of a weight that is divided over `size` ranks."""
        if name in self._own_shapes:
            return self._own_shapes[name]
        if (name, size) not in self._shapes:
            parts = [torch.empty(self._hf_shapes[each], device="meta") for each in hf_names(name) or []]
            self._shapes[name, size] = tuple(shard_of(name, parts, self._model, 0, size).shape)
        return self._shapes[name, size]

    def _shard(self, field: str, name: str, shard: int, held: Iterable[Held], verify: bool) -> Tensor:
        parts = sorted((each for each in held if each.part.shard == shard), key=lambda each: each.part.start)
        shape = self._shape(name, parts[0].part.n_shards) if parts else ()
        n_elements, reached = math.prod(shape), 0
        pieces: list[Tensor] = []
        for each in parts:
            if each.part.start != reached:
                break
            pieces.append(self._get(each, field, name, verify).reshape(-1))
            reached = each.part.end
        if not parts or reached != n_elements:
            missing = f"shard {shard}" if not parts else f"elements from {reached} on of shard {shard}"
            raise CheckpointError(f"checkpoint {self.folder} lacks {missing} of {field} of {name}; the rest is in {_files(held)}")
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(shape)

    def _get(self, held: Held, field: str, name: str, verify: bool) -> Tensor:
        part, path = held.part, self.folder / held.file
        with self._reading(held.file) as opened:
            tensor = cast("Tensor", opened.get_tensor(held.key))
        if verify and part.shape and tensor.numel() != part.end - part.start:
            raise CheckpointError(f"{path} is corrupt: its part of {field} of {name} has {tensor.numel()} elements")
        if verify and part.checksum and checksum(tensor) != part.checksum:
            raise CheckpointError(f"{path} is corrupt: the checksum of its part of {field} of {name} differs")
        return tensor

    @contextmanager
    def _reading(self, file: str) -> Generator[Any]:
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(self.folder / file, framework="pt", device="cpu").__enter__()
            yield self._opened[file]
        except (OSError, SafetensorError, msgspec.DecodeError) as error:
            raise CheckpointError(f"cannot read {self.folder / file}: {error}") from error


def _files(held: Iterable[Held]) -> str:
    return ", ".join(sorted({each.file for each in held}))
