"""Children that get to ask for their parent only after it has died end as well."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import asyncio, os, sys
from pathlib import Path
from actors.runtime.platform import SystemPlatform

async def main():
    await SystemPlatform().spawn([sys.executable, "-c", *sys.argv[2:]], log_path=Path(sys.argv[1]))
    os._exit(0)

asyncio.run(main())
"""
CHILD = """
import os, runpy, sys, time
while str(os.getppid()) == os.environ["ASEARCH_PARENT"]:
    time.sleep(0.01)
module = sys.argv.pop(1)
print("orphaned", flush=True)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Waits until its parent is gone, then is what the command says."""


@pytest.mark.parametrize(
    "command",
    [
        ["asearch.weights.serving", "--root", ".", "--announced", "a", "--token-file", "t", "--die-with-parent"],
        ["asearch.training.rank", "--fd", "99"],
    ],
)
def test_a_child_that_asks_too_late_ends(tmp_path: Path, command: list[str]) -> None:
    log = tmp_path / "child.log"
    subprocess.run([sys.executable, "-c", PARENT, str(log), CHILD, *command], check=True, timeout=60)
    deadline_s = time.monotonic() + 60
    while "has ended already" not in (text := log.read_text()):
        assert time.monotonic() < deadline_s, text
        time.sleep(0.05)
