"""A learner in this process, for checks that look into it.

Importing this installs megatron's device shim, which patches torch for the whole process: `test_megatron.py` runs such checks in
a process of their own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asearch.training.cpu_shim import correct_optimizer_state, install_device_shim

install_device_shim()
correct_optimizer_state()

from asearch.training.batch import TrainingSequence  # noqa: E402
from asearch.training.checkpoint import CheckpointWriter  # noqa: E402
from asearch.training.learner import Learner  # noqa: E402
from asearch.training.mapping import to_hf  # noqa: E402
from asearch.training.settings import TrainerSettings  # noqa: E402
from schemas.local import TrainGroup, TrainStep  # noqa: E402

LENGTHS = [40, 39, 37, 20, 20, 3, 2]


def learner(folder: Path, **settings: Any) -> Learner:
    return Learner(folder, TrainerSettings(**({"token_budget": 128, "lr": 3e-3} | settings)), seed=1)


def sequences(lengths: list[int], vocab_size: int, trained: float = 0.6) -> list[TrainingSequence]:
    rng = np.random.default_rng(3)
    made: list[TrainingSequence] = []
    for number, n in enumerate(lengths):
        positions = np.flatnonzero(np.append(rng.random(n - 1) < trained, True)[: n - 1]) + 1
        positions = np.union1d(positions, [n - 1])
        behaviour = rng.normal(-4, 0.3, len(positions)).astype(np.float32)
        made.append(TrainingSequence(rng.integers(0, vocab_size, n), positions, behaviour, number, number // 2, f"s{number}"))
    return made


def weights_of(built: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in built.weights().items()}


def gradients(built: Learner) -> dict[str, Tensor]:
    return to_hf({name: p.main_grad for name, p in built.module.named_parameters()}, built.model_config)


def step(number: int, groups: list[TrainGroup], **fields: Any) -> TrainStep:
    return TrainStep(step=number, lineage=0, groups=groups, **({"max_staleness": 99} | fields))


def save(built: Learner, folder: Path) -> None:
    """Write a checkpoint and wait for it."""
    writer = CheckpointWriter()
    writer.begin(built, folder)
    assert writer.wait(60.0) is not None


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
