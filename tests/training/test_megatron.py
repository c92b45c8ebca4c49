"""Runs the files named `*_checks.py` in one process of their own: the device shim changes torch for good."""

import os
import subprocess
import sys
from pathlib import Path

CHECKS = sorted(Path(__file__).parent.glob("*_checks.py"))


def test_checks_with_megatron_in_one_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, CHECKS)],
        cwd=CHECKS[0].parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
