"""Weights, optimizer state and RNG of a rank as safetensors files: exact, and without pickle.

Every rank writes what it alone answers for, as parts of tensors (`asearch.training.fragments`), so that a checkpoint can be
restored with any other number of ranks.
"""

from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from asearch.errors import CheckpointError
from asearch.training.agreement import agreed
from asearch.training.fragments import RNG, WEIGHT, CheckpointFiles, Part, critic_file_of, files_of
from asearch.training.learner import Learner
from asearch.training.optimizer_state import MAIN, Trained, trained
from asearch.training.state_files import State, write_state
from asearch.training.trainable import Trainable


class CheckpointWriter:
    """Writes checkpoints of a learner in a thread, from a copy that is kept: only the copy holds up training.

    The copy costs the memory of weights and optimizer state once more. Copying into memory that is there already takes a
    tenth of the time that fresh memory does.
    """

    def __init__(self) -> None:
        self._copy: dict[str, dict[str, Tensor]] = {}
        self._files: Future[dict[str, tuple[int, str]]] | None = None

    def begin(self, learner: Learner, folder: Path) -> int:
        """Copy the state and start to write it into the existing `folder`. Returns the bytes of the copy.

        Raises CheckpointError while another one is written, or if the folder does not exist.
        """
        if self._files is not None and not self._files.done():
            raise CheckpointError("a checkpoint is being written already; wait for it before the next one")
        if not folder.is_dir():
            raise CheckpointError(f"the checkpoint folder {folder} does not exist; the trainer makes it before the rank writes")
        state = state_of(learner)
        self._copy = {file: _copied(tensors, self._copy.get(file, {})) for file, tensors in state.tensors.items()}
        state.tensors = self._copy
        self._files = Future()
        # A daemon, so that a rank that is told to leave does not wait for a slow disk.
        Thread(target=self._write, args=(self._files, state, folder), name="checkpoint", daemon=True).start()
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

    def _write(self, files: "Future[dict[str, tuple[int, str]]]", state: State, folder: Path) -> None:
        try:
            files.set_result(write_state(state, folder))
        except Exception as error:
            files.set_exception(error)


def state_of(learner: Learner) -> State:
    """What this rank's share of a checkpoint holds: the tensors that training changes, and the RNG's state."""
    position = learner.position
    model, optimizer = files_of(position.rank)
    state = State({model: {}, optimizer: {}}, {model: {}, optimizer: {}}, position.n_ranks)
    for each in trained(learner):
        _add_trained(state, each, (model, each.name), optimizer)
    if learner.critic is not None:
        file = critic_file_of(position.rank)
        state.tensors[file], state.parts[file] = {}, {}
        for each in trained(learner.critic):
            _add_trained(state, each, (file, f"{WEIGHT}/{each.name}"), file)
    rng = torch.get_rng_state()
    _add(state, (optimizer, RNG), rng, Part(0, 1, tuple(rng.shape), 0, rng.numel()))
    return state


def _add_trained(state: State, each: Trained, weight: tuple[str, str], of_fields: str) -> None:
    """Add what this rank answers for of a weight, under file and key, and of its optimizer state."""
    if each.writes:
        _add(state, weight, each.parameter, each.part(0, each.parameter.numel()))
    for name, tensor in each.fields().items() if each.writes_state else ():
        part = each.part(each.start, each.end) if tensor.dim() else Part(0, 1, (), 0, 1)
        _add(state, (of_fields, f"{name}/{each.name}"), tensor, part)


def _add(state: State, where: tuple[str, str], tensor: Tensor, part: Part) -> None:
    file, key = where
    state.tensors[file][key] = tensor.detach()
    state.parts[file][key] = part


def restore_checkpoint(learner: Learner, folder: Path) -> None:
    """Set the state that the ranks of a trainer wrote, whatever their number was.

    Raises CheckpointError, before any change on any rank, if something is missing, corrupt or not of this model.
    """
    models: list[Trainable] = [learner] if learner.critic is None else [learner, learner.critic]
    here = [trained(model) for model in models]
    with agreed(f"restore {folder}", CheckpointError):
        files = [CheckpointFiles(folder, model.model_config, of_critic=model is not learner) for model in models]
        rng = files[0].rng(learner.position.rank, verify=True)
        for model, held, weights in zip(models, files, here, strict=True):
            for each in weights:
                for name in (WEIGHT, *_fields(held, each)):
                    _tensor(held, model, each, name, verify=True)
    for model, held, weights in zip(models, files, here, strict=True):
        with held, torch.no_grad():
            for each in weights:
                each.parameter.copy_(_tensor(held, model, each, WEIGHT))
                found = {name: each.own(_tensor(held, model, each, name)) for name in _fields(held, each)}
                each.set_fields(found.pop(MAIN, None), found)
    if rng is not None:
        torch.set_rng_state(rng)


def _fields(files: CheckpointFiles, each: Trained) -> list[str]:
    return sorted(files.fields) if each.main is not None else []


def _tensor(files: CheckpointFiles, model: Trainable, each: Trained, name: str, verify: bool = False) -> Tensor:
    place = model.position.placement
    return files.tensor(name, each.name, place.tensor_rank, place.tensor_size, verify)


def _copied(tensors: dict[str, Tensor], into: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU, in the memory of an earlier one of the same shapes."""

    def place(name: str, tensor: Tensor) -> Tensor:
        there = into.get(name)
        if there is not None and there.shape == tensor.shape and there.dtype == tensor.dtype:
            return there
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

    return {name: place(name, tensor).copy_(tensor) for name, tensor in tensors.items()}
