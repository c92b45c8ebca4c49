"""A real training run for benchmarks of what looks at it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

SETTINGS = ("warmstart.steps=300", "evaluation.before=false", "evaluation.after=false", "viewer.port=0")
START_TIMEOUT_S = 240.0
WARM_UP_S = 15.0


@dataclass
class LiveRun:
    """Where it is shown, and its processes."""

    url: str
    run: str
    supervisor: psutil.Process
    broker: psutil.Process


@contextlib.contextmanager
def live_run(run: str = "r") -> Iterator[LiveRun]:
    """Train the toy recipe until the block is left; given when its page is there and training has begun."""
    with tempfile.TemporaryDirectory(prefix="asearch-bench-") as folder:
        root, log_path = Path(folder) / "runs", Path(folder) / "log"
        argv = [sys.executable, "-m", "actors.cli.main", "train", "toy", "--runs", str(root), "--run", run, "--steps", "5000"]
        argv += [part for setting in SETTINGS for part in ("-s", setting)]
        with log_path.open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            url_file = root / run / "viewer.url"
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not url_file.is_file():
                assert process.poll() is None and time.monotonic() < deadline_s, log_path.read_text()[-2000:]
                time.sleep(0.5)
            time.sleep(WARM_UP_S)
            broker = json.loads((root / ".broker" / "broker.json").read_bytes())["process"]["pid"]
            yield LiveRun(url_file.read_text().strip(), run, psutil.Process(process.pid), psutil.Process(broker))
        finally:
            process.terminate()
            process.wait(200.0)
