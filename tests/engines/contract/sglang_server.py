"""SGLang on CPU as a real process, for the tests that carry the mark `sglang`."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from asearch.configuration.engine import EngineSettings
from asearch.engines.sglang.launch import launch
from asearch.engines.sglang.shared_memory import left_by
from asearch.models.config import ModelConfig
from engines.contract.served import Served

START_S = 240.0
PYTHON = "ASEARCH_SGLANG_PYTHON"
"""Interpreter that has SGLang, if it is not that of `.venv-sglang`."""


class SglangServer:
    """At most one server at a time, as each takes a minute of CPU to start."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder, self._config = folder, config
        self._log_path = folder / "sglang.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._flavour = ("", "")
        self._url = ""

    def serving(self, streams: str, version: str) -> Served:
        """The running server if it was started so and lives, else another one. `streams` is cumulative or incremental."""
        if self._process is None or self._process.poll() is not None or self._flavour != (streams, version):
            self.kill()
            self._start(streams, version)
        return Served("sglang", self._url, self._folder, self._config)

    def kill(self) -> None:
        """Ends the server and its children with SIGKILL."""
        if self._process is not None:
            left = left_by(self._process.pid)
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            for each in left:
                each.remove()

    def _start(self, streams: str, version: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = EngineSettings(
            kind="sglang", device="cpu", python=os.environ.get(PYTHON), max_running_requests=64, max_total_tokens=32768
        )
        made = launch(settings, self._folder / version, port, seed=0, max_context_tokens=self._config.max_positions)
        argv = [*made.argv, "--weight-version", version]
        if streams == "cumulative":
            argv.remove("--incremental-streaming-output")
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(argv, env=made.env, stdout=log, stderr=log, start_new_session=True)
        self._flavour, self._url = (streams, version), f"http://127.0.0.1:{port}"
        self._wait_ready(self._process)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None and time.monotonic() < deadline, self._tail()
            try:
                with urllib.request.urlopen(self._url + "/health_generate", timeout=10):  # noqa: S310  (our own loopback)
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)

    def _tail(self) -> str:
        return "SGLang did not come up:\n" + "\n".join(self._log_path.read_text(errors="replace").splitlines()[-30:])
