"""Runs `megatron_checks.py` in a process of its own: see there."""

import os
import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("megatron_checks.py")


def test_checks_with_megatron_in_one_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CHECKS)],
        cwd=CHECKS.parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
