"""`asearch view`: the page of a run that nobody shows any more, or a second one of a live run."""

import asyncio
import signal
from pathlib import Path

import click
import uvloop

from actors.cli import looking
from actors.cli.browser import open_page
from actors.page.board import open_board
from actors.page.server import serving
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import open_run
from actors.runtime.workspace import Workspace
from asearch.configuration.settings import ViewerSettings
from asearch.errors import InputError


@click.command("view")
@looking.run_argument
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=ViewerSettings().port, show_default=True, help="0 takes a free one."
)
@click.option("--open/--no-open", "opens", default=True, help="Show it in the browser.")
def view(run: str | None, root: Path, port: int, opens: bool) -> None:
    """Serve the page of RUN (the live one, else the newest) on loopback until Ctrl-C.

    Works for runs that are live, ended or crashed; reads only.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_view(Workspace(root), run, port, opens=opens))


async def _view(workspace: Workspace, run: str | None, port: int, *, opens: bool) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with open_run(workspace, run, SystemPlatform(), "view") as source:
        if source.bus is None:
            raise InputError(
                f"the broker's store of run '{source.run}' is gone; `asearch episodes` and `asearch show` read the archive"
            )
        async with open_board(source, source.bus, workspace) as board, serving(board, workspace, port) as url:
            click.echo(f"run '{source.run}': {url}   (Ctrl-C ends it)", err=True)
            if opens:
                open_page(url)
            await stopping.wait()
