"""`asearch train toy --replay`: a recorded run trained again in other parallel layouts comes to the same losses."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.looked_at import asearch, command

STEPS = 10
SETTINGS = {
    "warmstart.steps": 250,
    "run.groups_per_step": 6,
    "run.group_size": 6,
    "evaluation.before": "false",
    "evaluation.after": "false",
    "viewer.enabled": "false",
}
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "one rank": (),
    "tensor": ("trainer.tensor_parallel=2",),
    "pipeline": ("trainer.pipeline_parallel=2",),
    "data": ("trainer.data_parallel=2",),
    "context": ("trainer.context_parallel=2",),
    "data and tensor": ("trainer.data_parallel=2", "trainer.tensor_parallel=2"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of STEPS steps by one rank."""
    folder = tmp_path_factory.mktemp("replayed") / "runs"
    options = [part for name, value in SETTINGS.items() for part in ("-s", f"{name}={value}")]
    place = ("--runs", folder, "--run", "r", "--seed", 3, "--steps", STEPS)
    done = subprocess.run(command("train", "toy", *place, *options), capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_the_same_in_every_layout(root: Path, layout: str) -> None:
    options = [part for setting in LAYOUTS[layout] for part in ("-s", setting)]
    ended = asearch(root, "train", "toy", "--replay", "r", "--steps", STEPS, "--json", *options)
    assert ended.status == 0, ended.err
    replay: dict[str, Any] = ended.lines[0]["replay"]
    assert (replay["steps"], replay["same_tokens"]) == (STEPS, True)
    assert replay["updates"] > 1
    assert replay["settings"] == {name: int(value) for name, _, value in (each.partition("=") for each in LAYOUTS[layout])}
    assert replay["max_loss_difference"] <= (1e-4 if options else 0.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_precision_is_no_longer_the_same(root: Path) -> None:
    ended = asearch(root, "train", "toy", "--replay", "r", "--steps", 3, "--json", "-s", "trainer.precision=bf16")
    assert ended.status == 0, ended.err
    assert 0.0 < ended.lines[0]["replay"]["max_loss_difference"] < 0.1
