"""A chaos run that is interrupted while a process of it is stopped leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.chaos import left_over


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    command = (sys.executable, "-m", "tests.chaos", "--small", "--faults", "9", "--kind", "stop_driver", "--keep", str(folder))
    environment = os.environ | {"ASEARCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_a_stopped_process(folder, deadline_s=time.monotonic() + 120.0)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60.0)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "interrupted: every process was stopped" in said
    assert asyncio.run(left_over(folder, folder / "chaos")) == []


def wait_for_a_stopped_process(folder: Path, deadline_s: float) -> None:
    import psutil

    while time.monotonic() < deadline_s:
        for found in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(found.info["cmdline"] or ())
            if found.info["status"] == psutil.STATUS_STOPPED and str(folder) in line:
                return
        time.sleep(0.1)
    raise TimeoutError("no process was stopped")
