"""Embedded engines as real processes on free ports."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from asearch.models.config import ModelConfig
from tests.models.models_for_tests import small_config, write_model, write_tokenizer

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Running:
    url: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    """`v1` and `v2` are model folders of the same shape in here."""
    config: ModelConfig


def start(model: Path, folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
    port_file, log_file = folder / "port", folder / "server.log"
    command = [sys.executable, "-m", "asearch.engines.embedded", "--model-path", str(model), "--port", "0"]
    with log_file.open("wb") as log:
        process = subprocess.Popen([*command, "--port-file", str(port_file), *arguments], stderr=log, stdout=log)
    return process, port_file, log_file


def write_folders(folder: Path) -> ModelConfig:
    """Writes `v1` and `v2`."""
    config = small_config("Qwen3ForCausalLM", tied=False)
    for seed, name in enumerate(("v1", "v2")):
        write_model(folder / name, config, seed)
        write_tokenizer(folder / name)
    return config


def wait_for_port(process: subprocess.Popen[bytes], port_file: Path, log_file: Path) -> int:
    deadline = time.monotonic() + 120
    while not port_file.exists():
        assert process.poll() is None and time.monotonic() < deadline, log_file.read_text()
        time.sleep(0.02)
    return int(port_file.read_text())


@contextmanager
def running(folder: Path, *arguments: str, version: str = "v1") -> Iterator[Running]:
    """A server of the folder of `version`, under that name."""
    config = write_folders(folder)
    process, port_file, log_file = start(folder / version, folder, "--weight-version", version, *arguments)
    try:
        port = wait_for_port(process, port_file, log_file)
        yield Running(f"http://127.0.0.1:{port}", port, process, folder, config)
        assert process.poll() is None, log_file.read_text()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 0, log_file.read_text()
        assert "Traceback" not in log_file.read_text(), log_file.read_text()
    finally:
        process.kill()
        process.wait()


@lru_cache(maxsize=8)
def _model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference(folder: Path, ids: list[int]) -> torch.Tensor:
    """[len(ids), V]: log-probabilities of the token after each of `ids`, by transformers in fp32."""
    with torch.no_grad():
        return torch.log_softmax(_model(folder)(torch.tensor([ids])).logits[0], -1)


def worst(folder: Path, prompt: list[int], output: list[int], logprobs: list[float], start: int, end: int) -> float:
    """Largest difference of the log-probabilities of output tokens [start, end) from the reference of `folder`."""
    expected = reference(folder, prompt + output)
    index = torch.arange(start, end)
    chosen = expected[len(prompt) - 1 + index, torch.tensor(output)[index]]
    return float((chosen - torch.tensor(logprobs)[index]).abs().max())
