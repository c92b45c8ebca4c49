"""`asearch watch`: where every episode of a run stands, live."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

import click

from actors.cli import looking
from actors.cli.watching import Watched, watched, watched_rows
from actors.runtime.following import View, follow
from actors.runtime.run_files import RunFile, read_run_file, read_url
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import is_live
from asearch.errors import BusError
from asearch.traces.stages import StageTable

REFRESH_S = 0.5
PLAIN_EVERY_S = 3.0
LISTEN_S = 2.2
"""Two heartbeats: --once waits so long, or actors would seem silent."""
Show = Callable[[Watched], None]


@click.command("watch", epilog=f"Example: asearch watch toy-3 --once --json. {looking.EXIT_CODES}")
@looking.run_argument
@click.option("--once", is_flag=True, help="Show this moment and stop.")
@looking.json_option
@looking.runs_option
def watch(run: str | None, once: bool, as_json: bool, root: Path) -> None:
    """Watch the episodes of RUN by stage, the slowest ones, the actors and the accounting, until the run is over or Ctrl-C.

    Drawn in place on a terminal, else a line every few seconds; with --json, one line an update. A run that is over is shown
    once, as it was left. Only reads: the run does not notice.
    """

    async def work(source: RunSource) -> None:
        with _showing(as_json=as_json, once=once) as show:
            if not is_live(source.content):
                show(await _left(source))
            elif source.bus is None:
                show(watched(source.content, "preparing", View(), _now_ns()))
            else:
                await _live(source, show, once=once)

    looking.looked(root, run, work)


async def _live(source: RunSource, show: Show, *, once: bool) -> None:
    assert source.bus is not None  # noqa: S101
    platform = source.bus.platform
    async with follow(source.bus, source.run_dir, with_stages=True) as view:
        if once:
            await platform.sleep(LISTEN_S)
        content = source.content
        while is_live(content):
            content = read_run_file(source.run_dir)
            show(_moment(content, view, source))
            if once:
                return
            await platform.sleep(REFRESH_S)
        with contextlib.suppress(BusError, TimeoutError):
            # The broker stops with the last run: what was heard until then is shown.
            async with asyncio.timeout(LISTEN_S):
                await view.catch_up(source.bus)
        show(watched(content, _over(view), view, platform.now_ns(), page=read_url(source.run_dir)))


def _moment(content: RunFile, view: View, source: RunSource) -> Watched:
    assert source.bus is not None  # noqa: S101
    note = "" if source.bus.is_connected else "the broker is away: this is what was known last"
    state = "live" if content.corpus_url else "preparing"
    return watched(content, state, view, source.bus.platform.now_ns(), note=note, page=read_url(source.run_dir))


def _over(view: View) -> str:
    return "crashed" if view.report.ended is None else "ended"


async def _left(source: RunSource) -> Watched:
    """A run that is over, as it was left."""
    if source.bus is None:
        has_ended = (source.run_dir / "result.json").is_file()
        note = "the broker's store is gone: only archived episodes are counted"
        return watched_rows(source.content, "ended" if has_ended else "crashed", await source.rows(), _now_ns(), note)
    view = View(run_dir=source.run_dir, stages=StageTable())
    await view.catch_up(source.bus)
    state = _over(view)
    note = (
        "" if state == "ended" else f"its supervisor is dead: `asearch train --run {source.run}` with the same settings goes on"
    )
    return watched(source.content, state, view, source.bus.platform.now_ns(), note=note)


def _now_ns() -> int:
    import time

    return time.time_ns()


@contextlib.contextmanager
def _showing(*, as_json: bool, once: bool) -> Generator[Show]:
    """Whatever shows a moment: JSON lines, plain lines every few seconds, or a screen that is drawn in place."""
    if as_json:
        yield looking.say_json
        return
    from rich.console import Console

    from actors.cli.watch_screen import drawing, plain_watch_line

    console = Console()
    if not console.is_terminal:
        if once:
            yield lambda now: console.print(drawing(now, 120, ascii_only=console.options.ascii_only))
            return
        yield _sparing(plain_watch_line)
        return
    if once:
        yield lambda now: console.print(drawing(now, console.width, ascii_only=console.options.ascii_only))
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda now: live.update(drawing(now, console.width, ascii_only=console.options.ascii_only), refresh=True)


def _sparing(line_of: Callable[[Watched], str]) -> Show:
    """A line every few seconds, and one when step or state changes."""
    said: list[object] = [0, None]

    def show(now: Watched) -> None:
        key = (now.state, now.phase, now.step)
        if key != said[1] or now.at_ns - int(str(said[0])) >= PLAIN_EVERY_S * 1e9:
            said[:] = [now.at_ns, key]
            looking.say(line_of(now))

    return show
