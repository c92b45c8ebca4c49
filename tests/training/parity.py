"""A group of ranks and one rank alone over the same batches, for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.local import LoadModel, ModelLoaded, StepDone, TrainGroup, TrainStep

SETTINGS: dict[str, Any] = {"lr": 3e-3, "token_budget": 128, "advantage": "grpo_mean"}
TIMEOUT_S = 120.0


async def trained(rank: Any, folder: Path, batches: Sequence[list[TrainGroup]], **settings: Any) -> list[StepDone]:
    """What `rank` says of one step for each batch, from the weights in `folder`."""
    command = LoadModel(model_dir=str(folder), settings=json.dumps(SETTINGS | settings).encode(), seed=1)
    await rank.ask(command, ModelLoaded, TIMEOUT_S)
    done: list[StepDone] = []
    for number, groups in enumerate(batches):
        step = TrainStep(step=number, lineage=0, groups=groups, max_staleness=99, max_recorded_tokens=10_000)
        done.append(await rank.ask(step, StepDone, TIMEOUT_S))
    return done
