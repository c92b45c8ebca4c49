"""One real SGLang server on CPU, started by the command that engines use, with two small models to serve."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import msgspec
import psutil
from models.models_for_tests import small_config, write_model, write_tokenizer

from actors.runtime.broker import free_port
from actors.runtime.launching import TALLIES, tokens_sampled
from asearch.configuration.engine import EngineSettings
from asearch.engines.sglang.launch import launch
from asearch.engines.sglang.shared_memory import left_by

START_S = 400.0
CONTEXT_TOKENS = 480
SETTINGS = EngineSettings(kind="sglang", device="cpu", max_total_tokens=32768, max_running_requests=64)


def write_models(folder: Path) -> Path:
    """`v1` and `v2`: one shape, one tokenizer, different weights."""
    config = small_config("Qwen3ForCausalLM", tied=False)
    for seed, name in enumerate(("v1", "v2")):
        write_model(folder / name, config, seed)
        write_tokenizer(folder / name)
        # No end of sequence: nothing ends by chance.
        tokens = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / name / "tokenizer_config.json").write_bytes(msgspec.json.encode(tokens))
    return folder


class Server:
    """A server of `folder/v1`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self.run_dir = folder / f"run-{uuid.uuid4().hex}"
        tally = self.run_dir / TALLIES / "engine-0"
        launched = launch(SETTINGS, folder / "v1", free_port(), seed=0, max_context_tokens=CONTEXT_TOKENS, tally=tally)
        self.url = launched.url() or ""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                launched.argv, env=dict(launched.env or {}), stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        """Until it generates."""
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            try:
                with urllib.request.urlopen(self.url + "/ready", timeout=10):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def n_sampled(self) -> int:
        """Tokens that it has counted."""
        return tokens_sampled(self.run_dir)

    def stop(self) -> None:
        """End it and all its processes."""
        left = left_by(self.process.pid)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for each in left:
            each.remove()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
