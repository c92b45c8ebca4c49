"""Runs to look at: one that is over, and one of which everything was killed, broker included; and the commands on them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from click.testing import CliRunner

from actors.cli.main import cli
from asearch.errors import AsearchError

T = TypeVar("T")
SETTINGS = (
    *("-s", "warmstart.steps=40", "-s", "run.groups_per_step=3", "-s", "run.group_size=3"),
    *("-s", "evaluation.questions=6", "-s", "viewer.enabled=false", "-s", "run.max_empty_steps=1000"),
)


@dataclass
class Ended:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def command(*arguments: object) -> list[str]:
    """The command line of `asearch`."""
    return [sys.executable, "-m", "actors.cli.main", *map(str, arguments)]


def asearch(root: Path, *arguments: object) -> Ended:
    """A command on a folder of runs, in this process; errors of ours end it as at the command line."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--runs", str(root)])
    error = done.exception
    if isinstance(error, AsearchError):
        return Ended(error.exit_code, done.stdout, f"{done.stderr}error: {error}")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Ended(done.exit_code, done.stdout, done.stderr)


def start(root: Path, run: str, *, steps: int, seed: int) -> "subprocess.Popen[bytes]":
    """Start a run in a session of its own."""
    root.mkdir(parents=True, exist_ok=True)
    arguments = ("train", "toy", "--runs", root, "--run", run, "--seed", seed, "--steps", steps, *SETTINGS)
    with (root / f"{run}.err").open("wb") as err:
        return subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)


def kill_whole(root: Path, supervisor: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the supervisor, everything it started, and the broker, all at once."""
    os.kill(supervisor.pid, signal.SIGSTOP)
    doomed = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]
    broker = json.loads((root / ".broker" / "broker.json").read_bytes())["process"]["pid"]
    if broker not in [each.pid for each in doomed]:
        with contextlib.suppress(psutil.NoSuchProcess):  # It may have died, and nobody is left to start it again.
            doomed.append(psutil.Process(broker))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for each in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)
    supervisor.wait(20)
    psutil.wait_procs(doomed, 20)


def until(seen: Callable[[], T | None], timeout_s: float, what: str, every_s: float = 0.2) -> T:
    """Wait until something is seen, and return it."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := seen():
            return found
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")
