"""Weights, optimizer state and RNG of a rank as safetensors files: exact, and without pickle."""

from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asearch.errors import CheckpointError
from asearch.training.export import sync
from asearch.training.learner import Learner

MODEL_FILE = "rank0.model.safetensors"
OPTIMIZER_FILE = "rank0.optimizer.safetensors"
_RNG = "rng.torch"
_HASH_CHUNK_BYTES = 1 << 22


def save_checkpoint(learner: Learner, folder: Path) -> dict[str, tuple[int, str]]:
    """Write into the existing `folder`, every file fsynced. Returns size and xxh3-128 of each file by name."""
    if not folder.is_dir():
        raise CheckpointError(f"the checkpoint folder {folder} does not exist; the trainer makes it before the rank writes")
    tensors = {
        MODEL_FILE: {name: tensor.detach().cpu().contiguous() for name, tensor in learner.weights().items()},
        OPTIMIZER_FILE: _optimizer_tensors(learner) | {_RNG: torch.get_rng_state()},
    }
    for name, held in tensors.items():
        save_file(held, folder / name)
        sync(folder / name)
    sync(folder)
    return {name: (path.stat().st_size, _hash(path)) for name, path in ((name, folder / name) for name in tensors)}


def restore_checkpoint(learner: Learner, folder: Path) -> None:
    """Set the state that `save_checkpoint` wrote. Raises CheckpointError if it is not of this model, before any change."""
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
            tensors[f"main/{name}"] = parameter.detach().cpu().contiguous()
        for field, value in cast("dict[str, Tensor]", states.get(id(parameter), {})).items():
            tensors[f"{field}/{name}"] = value.detach().cpu().contiguous()
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
