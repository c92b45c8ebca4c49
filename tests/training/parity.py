"""A group of ranks over the same batches in several layouts, for tests."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.runtime.ranks import Rank
from schemas.local import LoadModel, ModelLoaded, StepDone, TrainGroup, TrainStep

SETTINGS: dict[str, Any] = {"lr": 3e-3, "token_budget": 128, "advantage": "grpo_mean", "clip_grad": 0.3}
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Run:
    """What a rank or a group said of its steps."""

    steps: list[StepDone]

    def metric(self, name: str) -> list[float]:
        return [step.metrics[name] for step in self.steps]

    @property
    def logprobs(self) -> list[npt.NDArray[np.float32]]:
        """Of all trained tokens of a step, in batch order."""
        return [
            np.concatenate([np.frombuffer(s.columns["logprobs"].data, "<f4") for e in step.episodes for s in e.segments])
            for step in self.steps
        ]


async def trained(rank: Rank, folder: Path, batches: Sequence[list[TrainGroup]], **settings: Any) -> Run:
    """One step for each batch, from the weights in `folder`."""
    command = LoadModel(model_dir=str(folder), settings=json.dumps(SETTINGS | settings).encode(), seed=1)
    await rank.ask(command, ModelLoaded, TIMEOUT_S)
    done: list[StepDone] = []
    for number, groups in enumerate(batches):
        step = TrainStep(step=number, lineage=0, groups=groups, max_staleness=99, max_recorded_tokens=10_000)
        done.append(await rank.ask(step, StepDone, TIMEOUT_S))
    return Run(done)


def assert_same(found: Run, expected: Run, tolerance: float = 1e-4) -> None:
    """Losses, gradient norms, all other metrics, and every token's log-probability, step by step."""
    for name in expected.steps[0].metrics:
        if name not in {"tokens_per_s", "n_micro_batches"}:
            np.testing.assert_allclose(found.metric(name), expected.metric(name), atol=tolerance, rtol=tolerance, err_msg=name)
    for number, (ours, theirs) in enumerate(zip(found.logprobs, expected.logprobs, strict=True)):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < tolerance, number
