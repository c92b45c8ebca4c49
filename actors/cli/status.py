"""`asearch status`: every actor of a run with its state, and how far the run is."""

import asyncio
import sys
from pathlib import Path

import click
import msgspec
import uvloop

from actors.cli import looking
from actors.cli.plain import phase_of
from actors.cli.screen import Drawing, Frame
from actors.runtime.broker_watch import store_trouble
from actors.runtime.following import View, follow
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.roster import actors_now, actors_of
from actors.runtime.run_files import RunFile, read_run_file, read_url
from actors.runtime.workspace import Workspace, is_live

LISTEN_S = 2.2
"""Two heartbeats."""
PREPARING = "preparing"
"""The phase before the actors start: world, warm start, corpus server."""


@click.command("status", epilog="Example: asearch status --run toy-3 --json.")
@looking.run_argument
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line a run.")
def status(run: str | None, root: Path, as_json: bool) -> None:
    """Show every actor of RUN, or of every live run, with its state.

    Exit status: 0 all actors ready, 1 some actor is not or the broker cannot store, 3 no run is live, 2 no such run.
    """
    workspace = Workspace(root)
    live = workspace.live_runs()
    if run is not None:
        named = read_run_file(workspace.run_dir(run))
        live = [named] if is_live(named) else []
    if not live:
        newest = run if run is not None else next((content.run for content in reversed(workspace.runs())), None)
        ended = f"run '{newest}' is not live" if newest is not None else f"there is no run in {root}"
        click.echo(msgspec.json.encode({"live": False, "run": newest}).decode() if as_json else ended)
        sys.exit(3)
    sys.exit(max([_status_of(workspace, content, as_json=as_json) for content in live]))


def _status_of(workspace: Workspace, content: RunFile, *, as_json: bool) -> int:
    """Show one live run; its exit status."""
    if not content.corpus_url:
        _show_preparation(content, as_json=as_json)
        return 1
    trouble = store_trouble(workspace.broker_folder)
    run_dir = workspace.run_dir(content.run)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        view = runner.run(_listen(content, run_dir))
    states = _states(actors_now(content.settings, run_dir), view)
    if as_json:
        click.echo(_json(content, phase_of(view.report), states, trouble, read_url(run_dir)))
    else:
        _show(content, view, states, read_url(run_dir))
        if trouble is not None:
            click.echo(trouble)
    return 0 if trouble is None and all(state == "ready" for state, _ in states.values()) else 1


def _json(content: RunFile, phase: str, states: dict[str, tuple[str, str]], trouble: str | None = None, page: str = "") -> str:
    actors = {name: {"state": state, "waiting_for": waits} for name, (state, waits) in states.items()}
    told = {"live": True, "run": content.run, "phase": phase, "actors": actors, "broker": trouble, "page": page}
    return msgspec.json.encode(told).decode()


def _show_preparation(content: RunFile, *, as_json: bool) -> None:
    states = {name: ("not started", "") for _, name in actors_of(content.settings)}
    if as_json:
        click.echo(_json(content, PREPARING, states))
        return
    click.echo(f"run '{content.run}': {PREPARING} (world, warm start); its actors start then")
    for name, (state, _) in states.items():
        click.echo(f"{name}: {state}")


async def _listen(content: RunFile, run_dir: Path) -> View:
    platform = SystemPlatform()
    bus = await connect(content.broker_url, content.run, f"status-{platform.new_id()[:6]}", platform)
    try:
        async with follow(bus, run_dir) as view:
            await platform.sleep(LISTEN_S)
        return view
    finally:
        await bus.close()


def _states(expected: list[tuple[str, str]], view: View) -> dict[str, tuple[str, str]]:
    """State and what it waits for, by actor; an actor that says nothing is `silent`.

    Besides those that the run keeps alive: engines that joined by themselves. One that leaves is not waited for.
    """
    heard = view.vitals.latest
    names = [name for _, name in expected]
    names += sorted(
        name for name, beat in heard.items() if beat.actor == "engine" and name not in names and beat.state != "draining"
    )
    return {name: (heard[name].state, heard[name].waiting_for) if name in heard else ("silent", "") for name in names}


def _show(content: RunFile, view: View, states: dict[str, tuple[str, str]], page: str) -> None:
    from rich.console import Console

    platform = SystemPlatform()
    console = Console()
    frame = Frame(
        run=content.run,
        now_ns=platform.now_ns(),
        elapsed_s=0.0,
        phase=phase_of(view.report),
        report=view.report,
        vitals=view.vitals,
        queues=view.queues,
        page=page,
    )
    console.print(Drawing(frame, console.width, console.options.ascii_only).whole())
    for name, (state, waiting_for) in states.items():
        if state == "silent":
            console.print(f"{name}: silent; see {content.run}/logs/{name}.log")
        elif waiting_for:
            console.print(f"{name}: {state}, waits for {waiting_for}")
