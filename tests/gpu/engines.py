"""Inference servers on this machine's device: the embedded engine, and SGLang where it is installed."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.gpu.checking import CPU, CUDA, FailedError, MissingError, Place, at_most, missing
from tests.gpu.trainer import SMALL, TINY
from tests.training.material import model_config, write_model

START_S = 600.0
LOGPROB_BOUND, HALF_BOUND = 1e-3, 0.1
"""In fp32, and where SGLang computes in bf16."""
PYTHON = "ASEARCH_SGLANG_PYTHON"
Tokens = list[list[tuple[int, float]]]


async def embedded(place: Place) -> dict[str, Any]:
    """Greedy tokens and log-probabilities as on the CPU, and tokens per second of a batch."""
    sizes = TINY if place.is_tiny else SMALL
    folder = _model(place, sizes, "engine")
    prompts = _prompts(4, sizes["vocab_size"])
    with _embedded(folder, CPU, place.hidden_gpu) as url:
        expected = _generated(url, prompts, 24)
    with _embedded(folder, place.device, {}) as url:
        difference = at_most("difference of log-probabilities", _apart(_generated(url, prompts, 24), expected), LOGPROB_BOUND)
        n_requests, n_new = (8, 16) if place.is_tiny else (64, 256)
        many = _prompts(n_requests, sizes["vocab_size"])
        begun_s = time.perf_counter()
        _generated(url, many, n_new)
        elapsed_s = time.perf_counter() - begun_s
    return {"logprob": difference, "tokens_per_s": n_requests * n_new / elapsed_s, "requests": n_requests}


async def sglang(place: Place) -> dict[str, Any]:
    """Greedy tokens of a real SGLang server with the log-probabilities of our engine on the CPU."""
    if place.device == CPU:
        raise MissingError("a GPU; on a CPU `just test-sglang` tests SGLang")
    python = _sglang_python()
    from asearch.configuration.engine import EngineSettings
    from asearch.engines.sglang.launch import launch

    folder = _model(place, SMALL, "sglang")
    prompts = _prompts(4, SMALL["vocab_size"])
    with _embedded(folder, CPU, place.hidden_gpu) as url:
        expected = _generated(url, prompts, 24)
    settings = EngineSettings(kind="sglang", device=CUDA, python=python, max_running_requests=64, max_total_tokens=32768)
    port = _free_port()
    made = launch(settings, folder, port, seed=0, max_context_tokens=512)
    with _running(made.argv, made.env, place.folder / "sglang.log", f"http://127.0.0.1:{port}", "/health_generate") as url:
        found = _generated(url, prompts, 24)
    return {"logprob": at_most("difference of log-probabilities", _apart(found, expected), HALF_BOUND), "python": python}


def _sglang_python() -> str:
    """An interpreter that has SGLang. Raises MissingError."""
    given, own = os.environ.get(PYTHON), Path(".venv-sglang/bin/python")
    if given or own.is_file():
        return given or str(own.absolute())
    if not missing(["sglang"]):
        return sys.executable
    raise MissingError(f"sglang: install it here, or name an interpreter that has it in {PYTHON}")


def _model(place: Place, sizes: dict[str, int], name: str) -> Path:
    return write_model(place.folder / name, model_config("Qwen3ForCausalLM", **(sizes | {"max_positions": 512})), scale=1.0)


def _prompts(n: int, vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, vocab_size, int(rng.integers(4, 40))).tolist() for _ in range(n)]


@contextlib.contextmanager
def _embedded(folder: Path, device: str, env: dict[str, str]) -> Generator[str]:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    port = _free_port()
    argv = [sys.executable, "-m", "asearch.engines.embedded", "--model-path", str(folder), "--port", str(port)]
    argv += ["--device", device, "--die-with-parent"]
    with _running(argv, dict(os.environ) | env, folder / f"{device}.log", f"http://127.0.0.1:{port}", "/health") as url:
        yield url


@contextlib.contextmanager
def _running(argv: Sequence[str], env: dict[str, str], log_path: Path, url: str, health: str) -> Generator[str]:
    with log_path.open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_S
        while not _answers(url + health):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise FailedError(
                    f"the server did not start: {' | '.join(log_path.read_text(errors='replace').splitlines()[-8:])}"
                )
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30):  # noqa: S310  (our own loopback)
            return True
    except (urllib.error.URLError, OSError):
        return False


def _generated(url: str, prompts: list[list[int]], n_new: int) -> Tokens:
    """Greedy tokens with their log-probabilities, a list for each prompt."""
    sampling = {"temperature": 0.0, "max_new_tokens": n_new, "ignore_eos": True}
    body = json.dumps({"input_ids": prompts, "sampling_params": sampling, "return_logprob": True}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + "/generate", body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=START_S) as response:  # noqa: S310
        replies = json.loads(response.read())
    return [[(entry[1], entry[0]) for entry in reply["meta_info"]["output_token_logprobs"]] for reply in replies]


def _apart(ours: Tokens, theirs: Tokens) -> float:
    """Largest difference of log-probabilities up to the first token of each prompt that is another one."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for (token, logprob), (expected, known) in zip(mine, other, strict=True):
            worst = max(worst, abs(logprob - known))
            if token != expected:
                break
    return worst


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
