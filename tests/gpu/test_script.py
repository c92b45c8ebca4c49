"""The script of GPU checks: what is not here is named, and all of its code runs on a CPU too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import parts, run
from tests.gpu.checking import CPU, CUDA, FailedError, MissingError, Part, Place


async def wrong(_: Place) -> dict[str, object]:
    raise FailedError("a difference of 2")


async def absent(_: Place) -> dict[str, object]:
    raise MissingError("sglang")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_every_part_says_so(tmp_path: Path) -> None:
    for part in parts():
        ended = run(part, Place(CUDA, True, tmp_path, None))
        assert (ended["status"], "a CUDA device" in ended["why"]) == ("skipped", True), ended


def test_what_is_missing_is_named_and_what_is_wrong_fails(tmp_path: Path) -> None:
    place = Place(CPU, True, tmp_path, None)
    for needs, function, status, why in (
        (("torch", "no_such_package.core"), wrong, "skipped", "not here: no_such_package.core"),
        (("torch",), absent, "skipped", "not here: sglang"),
        (("torch",), wrong, "failed", "a difference of 2"),
    ):
        assert run(Part("p", "", needs, function), place) == {"status": status, "why": why}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--tiny", "--peak-tflops", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])["parts"]
    assert {name: part["status"] for name, part in told.items()} == {
        "parity": "passed", "round_trip": "passed", "speed": "passed", "engine": "passed", "sglang": "skipped",
    }  # fmt: skip
    assert told["speed"]["tokens_per_s"] > 0 and 0 < told["speed"]["mfu"] < 1
    assert told["engine"]["logprob"] == told["parity"]["Qwen3ForCausalLM"]["logprob"] == 0.0
