"""For how long a checkpoint holds up training: written in the step's place, and copied and written beside it.

Run it as `python -m tests.bench.checkpoint_blocking [--folder F]`; the last line is JSON. CPU, one thread.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asearch.training.cpu_shim import correct_optimizer_state, install_device_shim

install_device_shim()
correct_optimizer_state()

from asearch.training.checkpoint import CheckpointWriter, state_of  # noqa: E402
from asearch.training.learner import Learner  # noqa: E402
from asearch.training.settings import TrainerSettings  # noqa: E402
from asearch.training.state_files import write_state  # noqa: E402
from asearch.training.step import train_step  # noqa: E402
from schemas.local import TrainStep  # noqa: E402
from tests.training.material import model_config, random_groups, write_model  # noqa: E402

MODELS: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "50M": {"vocab_size": 8192, "hidden_size": 640, "intermediate_size": 1792, "n_layers": 10, "n_heads": 10, "head_dim": 64},
}
N_TIMES = 4


def main() -> None:
    """Measure every model and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder unless given")
    root = Path(tempfile.mkdtemp(prefix="checkpoint-bench-", dir=parser.parse_args().folder))
    try:
        results = {name: measure(root / name, sizes) for name, sizes in MODELS.items()}
    finally:
        shutil.rmtree(root)
    print(json.dumps(results))


def measure(root: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """One model: seconds that a checkpoint blocks, and how much slower steps are while it is written."""
    config = model_config("Qwen3ForCausalLM", **sizes)
    learner = Learner(write_model(root / "model", config), TrainerSettings(lr=1e-4, token_budget=512), seed=0)
    groups = random_groups(2, 2, (60, 120), sizes["vocab_size"])
    number = 0

    def step() -> None:
        nonlocal number
        train_step(learner, TrainStep(step=number, lineage=0, groups=groups, max_staleness=None))
        number += 1

    step()
    alone_s = statistics.median(timed(step) for _ in range(N_TIMES))
    folders = iter(range(1000))

    def folder() -> Path:
        made = root / str(next(folders))
        made.mkdir()
        return made

    blocking = [timed(lambda: write_state(state_of(learner), folder())) for _ in range(N_TIMES)]
    writer = CheckpointWriter()
    copies, writes, beside = [], [], []
    for _ in range(N_TIMES):
        begun_s = time.perf_counter()
        copies.append(timed(lambda: writer.begin(learner, folder())))
        while writer.wait(0.0) is None:
            beside.append(timed(step))
        writes.append(time.perf_counter() - begun_s)
    return {
        "n_parameters": learner.n_parameters,
        "blocks_s_in_the_steps_place": rounded(blocking),
        "blocks_s_copied": rounded(copies),
        "written_after_s": rounded(writes),
        "step_s_alone": round(alone_s, 4),
        "step_s_while_written": round(statistics.median(beside), 4),
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


def rounded(values: list[float]) -> list[float]:
    """In the order of measuring: the first copy also makes the memory for it."""
    return [round(value, 4) for value in values]


if __name__ == "__main__":
    main()
