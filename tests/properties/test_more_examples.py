"""The same properties with more examples, drawn anew every time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FACTOR = 8


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_properties_hold_for_many_fresh_examples() -> None:
    """A failure prints a `@reproduce_failure` line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--timeout", "1000", str(Path(__file__).parent)]
    done = subprocess.run(command, env={**os.environ, "PROPERTY_FACTOR": str(FACTOR)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
