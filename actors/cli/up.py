"""`asearch up`: start the default run, or attach to the one that is live."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import click
import uvloop

from actors.cli.browser import open_page
from actors.cli.plain import phase_of
from actors.cli.screen import Frame, LiveScreen
from actors.cli.status import PREPARING
from actors.cli.train import run_here, settings_of
from actors.runtime.following import follow
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, check_name, read_run_file, read_url
from actors.runtime.workspace import Workspace, is_live
from asearch.configuration.engine import KINDS

REFRESH_S = 0.5


@click.command("up")
@click.argument("recipe", default="toy")
@click.option("--run", "run", help="Name of the run; the live one, else RECIPE-1, RECIPE-2 ...")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
@click.option("--seed", type=int, help="Seed of a new run.")
@click.option("--engine", type=click.Choice(KINDS), help="Kind of the inference servers of a new run.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Any setting of a new run.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the broker on loopback; 0 takes a free one.")
@click.option(
    "--open/--no-open", "opens", default=None, help="Show the page in the browser; by default where there is a desktop."
)
def up(
    recipe: str,
    run: str | None,
    root: Path,
    seed: int | None,
    engine: str | None,
    overrides: tuple[str, ...],
    port: int,
    opens: bool | None,
) -> None:
    """Start broker and actors, train RECIPE and show it live, here and on a page; a run that is live is shown instead."""
    opens = _has_desktop() if opens is None else opens
    workspace = Workspace(root)
    live = [content for content in workspace.live_runs() if run in (None, content.run)]
    if live:
        content = live[-1]
        click.echo(
            f"run '{content.run}' is live already: attached to it (Ctrl-C leaves it running; `asearch down` stops it)", err=True
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.suppress(KeyboardInterrupt):
            if opens and (url := read_url(workspace.run_dir(content.run))):
                open_page(url)
            runner.run(_attach(content, workspace.run_dir(content.run)))
        return
    settings = settings_of(recipe, {"seed": seed, "engine": engine, "overrides": overrides})
    sys.exit(
        run_here(
            workspace, check_name(run or workspace.next_name(settings.recipe)), settings, port, as_json=False, opens_page=opens
        )
    )


def _has_desktop() -> bool:
    return sys.stderr.isatty() and (sys.platform == "darwin" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY")))


async def _attach(content: RunFile, run_dir: Path) -> None:
    """Show a live run until it ends."""
    platform = SystemPlatform()
    begun_s = platform.monotonic()
    bus = await connect(content.broker_url, content.run, f"viewer-{platform.new_id()[:6]}", platform)
    try:
        async with follow(bus, run_dir) as view:
            with LiveScreen() as screen:
                while is_live(content):
                    if not content.corpus_url:
                        content = read_run_file(run_dir)
                    screen.show(
                        Frame(
                            run=content.run,
                            now_ns=platform.now_ns(),
                            elapsed_s=platform.monotonic() - begun_s,
                            phase=phase_of(view.report) if content.corpus_url else PREPARING,
                            report=view.report,
                            vitals=view.vitals,
                            queues=view.queues,
                            page=read_url(run_dir),
                        )
                    )
                    await platform.sleep(REFRESH_S)
    finally:
        await bus.close()
    click.echo(f"the run ended; its result: {run_dir / 'result.json'}", err=True)
