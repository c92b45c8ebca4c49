"""`asearch down`: stop live runs in order, and wait until nothing of them is left."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import click

from actors.cli import looking
from actors.runtime.run_files import RunFile
from actors.runtime.workspace import Workspace, is_live

TIMEOUT_S = 180.0
"""The recorder alone may take two minutes, for the tables of a long run."""


@click.command("down")
@looking.run_argument
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
def down(run: str | None, root: Path) -> None:
    """Stop RUN, or all live runs: open episodes are given up, the trainer checkpoints, every process ends.

    A broker that a killed run has left behind is stopped too.
    """
    workspace = Workspace(root)
    live = [content for content in workspace.live_runs() if run in (None, content.run)]
    if not live:
        if _stop_orphan(workspace):
            return
        click.echo(f"nothing to stop: {'no run is' if run is None else f'run {run!r} is not'} live in {root}", err=True)
        return
    for content in live:
        click.echo(f"stopping run '{content.run}' (process {content.supervisor_pid})", err=True)
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(content.supervisor_pid, signal.SIGTERM)
    left = _wait(live, TIMEOUT_S)
    for content in left:
        click.echo(f"error: run '{content.run}' did not stop within {TIMEOUT_S:g} s (process {content.supervisor_pid})", err=True)
    _stop_orphan(workspace)
    sys.exit(1 if left else 0)


def _stop_orphan(workspace: Workspace) -> bool:
    """Stop a broker that nobody uses; a run that crashed can be started again all the same, its streams are on disk."""
    pid = asyncio.run(workspace.stop_orphan()) if workspace.broker_folder.is_dir() else None
    if pid is not None:
        click.echo(f"stopped the broker that a killed run left behind (process {pid})", err=True)
    return pid is not None


def _wait(live: list[RunFile], timeout_s: float) -> list[RunFile]:
    """The runs that are still live at the timeout."""
    deadline_s = time.monotonic() + timeout_s
    left = live
    while left and time.monotonic() < deadline_s:
        time.sleep(0.1)
        left = [content for content in left if is_live(content)]
    return left
