"""Weights, optimizer state and RNG of a rank as safetensors files: exact, and without pickle."""

from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asearch.errors import CheckpointError, StorageError
from asearch.training.export import sync
from asearch.training.learner import Learner

MODEL_FILE = "rank0.model.safetensors"
OPTIMIZER_FILE = "rank0.optimizer.safetensors"
_RNG = "rng.torch"
_HASH_CHUNK_BYTES = 1 << 22


State = dict[str, dict[str, Tensor]]
"""Tensors by file and name."""


class CheckpointWriter:
    """Writes checkpoints of a learner in a thread, from a copy that is kept: only the copy holds up training.

    The copy costs the memory of weights and optimizer state once more. Copying into memory that is there already takes a
    tenth of the time that fresh memory does.
    """

    def __init__(self) -> None:
        self._copy: State = {}
        self._files: Future[dict[str, tuple[int, str]]] | None = None

    def begin(self, learner: Learner, folder: Path) -> int:
        """Copy the state and start to write it into the existing `folder`. Returns the bytes of the copy.

        Raises CheckpointError while another one is written, or if the folder does not exist.
        """
        if self._files is not None and not self._files.done():
            raise CheckpointError("a checkpoint is being written already; wait for it before the next one")
        if not folder.is_dir():
            raise CheckpointError(f"the checkpoint folder {folder} does not exist; the trainer makes it before the rank writes")
        for file, tensors in state_of(learner).items():
            self._copy[file] = _copied(tensors, self._copy.get(file, {}))
        self._files = Future()
        # A daemon, so that a rank that is told to leave does not wait for a slow disk.
        Thread(target=self._write, args=(self._files, folder), name="checkpoint", daemon=True).start()
        return sum(tensor.nbytes for tensors in self._copy.values() for tensor in tensors.values())

    def wait(self, timeout_s: float) -> dict[str, tuple[int, str]] | None:
        """Size and xxh3-128 of every file by name, None if they are not all on disk within `timeout_s`.

        Raises StorageError if they could not be written, CheckpointError if none was begun.
        """
        if self._files is None:
            raise CheckpointError("no checkpoint was begun")
        try:
            return self._files.result(timeout_s)
        except TimeoutError:
            return None

    def _write(self, files: "Future[dict[str, tuple[int, str]]]", folder: Path) -> None:
        try:
            files.set_result(write_state(self._copy, folder))
        except Exception as error:
            files.set_exception(error)


def state_of(learner: Learner) -> State:
    """What a checkpoint holds: the tensors that training changes, and the RNG's state."""
    return {
        MODEL_FILE: {name: tensor.detach() for name, tensor in learner.weights().items()},
        OPTIMIZER_FILE: _optimizer_tensors(learner) | {_RNG: torch.get_rng_state()},
    }


def write_state(state: State, folder: Path) -> dict[str, tuple[int, str]]:
    """Write tensors into the existing `folder`, every file fsynced. Returns size and xxh3-128 of each file by name.

    Raises StorageError.
    """
    try:
        for name, held in state.items():
            save_file({key: tensor.cpu().contiguous() for key, tensor in held.items()}, folder / name)
            sync(folder / name)
        sync(folder)
        return {name: ((folder / name).stat().st_size, _hash(folder / name)) for name in state}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {folder}: {error}") from error


def _copied(tensors: dict[str, Tensor], into: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU, in the memory of an earlier one of the same shapes."""

    def place(name: str, tensor: Tensor) -> Tensor:
        there = into.get(name)
        if there is not None and there.shape == tensor.shape and there.dtype == tensor.dtype:
            return there
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

    return {name: place(name, tensor).copy_(tensor) for name, tensor in tensors.items()}


def restore_checkpoint(learner: Learner, folder: Path) -> None:
    """Set the state that `write_state` wrote. Raises CheckpointError if it is not of this model, before any change."""
    weights, held = _read(folder / MODEL_FILE), _read(folder / OPTIMIZER_FILE)
    _same_shapes(learner.weights(), weights, folder / MODEL_FILE)
    rng = held.pop(_RNG, None)
    if rng is None:
        raise CheckpointError(f"{folder / OPTIMIZER_FILE} has no RNG state")
    states: list[tuple[Any, dict[str, Tensor]]] = []
    left = set(held)
    for name, parameter in _optimized(learner).items():
        fields = {key.partition("/")[0]: key for key in held if key.partition("/")[2] == name}
        left.difference_update(fields.values())
        states.append((parameter, {field: held[key] for field, key in fields.items()}))
    if left:
        raise CheckpointError(f"{folder / OPTIMIZER_FILE} has state of unknown weights: {', '.join(sorted(left)[:3])}")
    with torch.no_grad():
        for name, tensor in learner.weights().items():
            tensor.copy_(weights[name])
        inner = {id(p): opt for opt in learner.inner_optimizers() for group in opt.param_groups for p in group["params"]}
        for parameter, fields in states:
            main = fields.pop("main", None)
            if main is not None:
                parameter.copy_(main)
            state = inner[id(parameter)].state
            state.pop(parameter, None)
            if fields:
                state[parameter] = {k: v.to(parameter.device if v.dim() else "cpu") for k, v in fields.items()}
    torch.set_rng_state(rng)


def _optimized(learner: Learner) -> dict[str, Tensor]:
    # Under bf16 the optimizer works on a float32 copy that hangs on the parameter.
    return {name: cast("Tensor", getattr(p, "main_param", p)) for name, p in learner.module.named_parameters()}


def _optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    states = {id(p): entry for opt in learner.inner_optimizers() for p, entry in opt.state.items()}
    tensors: dict[str, Tensor] = {}
    half = learner.settings.precision == "bf16"
    for name, parameter in _optimized(learner).items():
        if half:
            tensors[f"main/{name}"] = parameter.detach()
        for field, value in cast("dict[str, Tensor]", states.get(id(parameter), {})).items():
            tensors[f"{field}/{name}"] = value.detach()
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _same_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    wrong = sorted(expected.keys() ^ found.keys()) or [n for n in expected if expected[n].shape != found[n].shape]
    if wrong:
        raise CheckpointError(f"{path} is not of this model: {', '.join(wrong[:3])} differ")


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
