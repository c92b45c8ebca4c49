"""The launcher of SGLang, on stand-ins for torch and SGLang: what it starts ends with whoever started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from asearch.engines.sglang.launch import FOLDER

TORCH = "class version:\n    cuda = '13'\n"
SERVER = """
import multiprocessing, os, pathlib, sys, time

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,)).start()
    pathlib.Path(sys.argv[1], "server").write_text(str(os.getpid()))
    time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
subprocess.Popen(sys.argv[1:], env=os.environ | {"ASEARCH_PARENT": str(os.getpid())}).wait()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has started the launcher, as an engine does."""
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "launch_server.py").write_text(SERVER)
    command = [sys.executable, "-c", PARENT, sys.executable, str(FOLDER / "launch_server.py"), str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, start_new_session=True)
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def started(folder: Path, parent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The server, and all that it has started."""
    deadline = time.monotonic() + 60
    while (
        not (folder / "server").exists()
        or not (folder / "server").read_text()
        or len(found := psutil.Process(parent.pid).children(recursive=True)) < 3
    ):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 20
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_server_ends_with_its_engine(tmp_path: Path, parent: subprocess.Popen[bytes]) -> None:
    processes = started(tmp_path, parent)
    parent.kill()
    assert gone(processes)


def test_the_parts_of_a_server_end_with_it(tmp_path: Path, parent: subprocess.Popen[bytes]) -> None:
    processes = started(tmp_path, parent)
    os.kill(int((tmp_path / "server").read_text()), signal.SIGKILL)
    assert gone(processes)
