"""`asearch down`: stop live runs in order, and wait until nothing of them is left."""

import os
import signal
import sys
import time
from pathlib import Path

import click

from actors.runtime.run_files import RunFile
from actors.runtime.workspace import Workspace, is_live

TIMEOUT_S = 90.0


@click.command("down")
@click.option("--run", "run", help="The run to stop; all live runs unless given.")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
def down(run: str | None, root: Path) -> None:
    """Stop live runs: open episodes are given up, the trainer checkpoints, every process ends."""
    live = [content for content in Workspace(root).live_runs() if run in (None, content.run)]
    if not live:
        click.echo(f"nothing to stop: {'no run is' if run is None else f'run {run!r} is not'} live in {root}", err=True)
        return
    for content in live:
        click.echo(f"stopping run '{content.run}' (process {content.supervisor_pid})", err=True)
        os.kill(content.supervisor_pid, signal.SIGTERM)
    left = _wait(live, TIMEOUT_S)
    for content in left:
        click.echo(f"error: run '{content.run}' did not stop within {TIMEOUT_S:g} s (process {content.supervisor_pid})", err=True)
    sys.exit(1 if left else 0)


def _wait(live: list[RunFile], timeout_s: float) -> list[RunFile]:
    """The runs that are still live at the timeout."""
    deadline_s = time.monotonic() + timeout_s
    left = live
    while left and time.monotonic() < deadline_s:
        time.sleep(0.1)
        left = [content for content in left if is_live(content)]
    return left
