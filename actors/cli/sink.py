"""`asearch sink`: a run's curves for TensorBoard or Weights & Biases, read from its streams."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import uvloop

from actors.cli import looking
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import choose_run, open_run
from actors.runtime.workspace import Workspace, is_live
from actors.sinks.feeding import feed
from actors.sinks.points import Sink, Written
from asearch.errors import InputError


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every sink."""
    runs = click.Path(path_type=Path)
    command = click.option("--once", is_flag=True, help="Write what there is and stop, though the run goes on.")(command)
    command = click.option("--runs", "root", type=runs, default=Path("runs"), show_default=True, help="Folder of runs.")(command)
    return looking.run_argument(command)


@click.group("sink")
def sink() -> None:
    """Write a run's steps, evaluations and accounting to an experiment tracker.

    A live run is followed until it ends, an ended one is written whole. Called again it goes on where it stopped. Exit
    status: 0 written, 2 no such run, or the tracker is not installed.
    """


@sink.command("tensorboard")
@click.option("--logdir", type=click.Path(path_type=Path), help="Folder of event files; RUNS/RUN/tensorboard unless given.")
@_common
def tensorboard(run: str | None, root: Path, once: bool, logdir: Path | None) -> None:
    """Write RUN (the live or newest one unless given) as TensorBoard event files."""
    from actors.sinks.tensorboard import TensorBoardSink

    workspace = Workspace(root)
    name = choose_run(workspace, run).run
    folder = logdir / name if logdir is not None else workspace.run_dir(name) / "tensorboard"
    _run(workspace, name, TensorBoardSink(folder), once=once)
    click.echo(f"see it with: tensorboard --logdir {logdir or folder}", err=True)


@sink.command("wandb")
@click.option("--project", default="asearch", show_default=True, help="Project in Weights & Biases.")
@click.option("--offline", is_flag=True, help="Write to disk alone; `wandb sync` sends it later.")
@_common
def wandb(run: str | None, root: Path, once: bool, project: str, offline: bool) -> None:
    """Record RUN (the live or newest one unless given) in Weights & Biases.

    The key comes from `wandb login` or WANDB_API_KEY.
    """
    from actors.sinks.wandb import WandbSink

    workspace = Workspace(root)
    name = choose_run(workspace, run).run
    folder = workspace.run_dir(name) / "wandb-records"
    _run(workspace, name, WandbSink(folder, project, offline=offline), once=once)
    if offline:
        click.echo(f"send it with: wandb sync {folder}/wandb/offline-run-*", err=True)


def _run(workspace: Workspace, name: str, target: Sink, *, once: bool) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            written = runner.run(_feed(workspace, name, target, once=once))
    except KeyboardInterrupt:
        click.echo("stopped; call it again to go on from here", err=True)
        return
    end = "and the end of the run" if written.ended else "; the run has not ended: call it again to go on"
    click.echo(f"run '{name}': {written.next_step} steps, {len(written.evaluations)} evaluations {end}", err=True)


async def _feed(workspace: Workspace, name: str, target: Sink, *, once: bool) -> Written:
    platform = SystemPlatform()
    async with open_run(workspace, name, platform, f"sink-{platform.new_id()[:6]}") as source:
        if source.bus is None:
            raise InputError(f"run '{name}' has no streams in the broker's store: steps are told by them alone")
        return await feed(source.bus, source.run_dir, target, lambda: not once and is_live(source.content))
