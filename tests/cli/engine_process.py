"""An embedded engine as a real process, for as long as a test asks it."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def running_engine(model: Path, version: str) -> Generator[str]:
    """The URL of an engine that serves a model folder."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log_file = Path(folder) / "port", Path(folder) / "log"
        command = [sys.executable, "-m", "asearch.engines.embedded", "--model-path", str(model), "--port", "0"]
        command += ["--port-file", str(port_file), "--weight-version", version, "--die-with-parent"]
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + 120
            while not port_file.exists():
                assert process.poll() is None and time.monotonic() < deadline_s, log_file.read_text()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{int(port_file.read_text())}"
        finally:
            process.terminate()
            process.wait(10)
