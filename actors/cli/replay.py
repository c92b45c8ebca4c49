"""`asearch replay`: drive episodes again from what is recorded of them, and see that everything comes out as it was."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import uvloop

from actors.cli.replaying.everything import Tally, replay_all
from actors.cli.replaying.single import replay_one
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import RunSource, open_run
from actors.runtime.workspace import Workspace
from asearch.traces.verdicts import Verdict

T = TypeVar("T")

runs_option = click.option(
    "--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")


@click.command("replay")
@click.argument("episode", required=False)
@click.option("--run", "run", help="The run of the episode; the live one, else the newest.")
@click.option("--all", "whole_run", metavar="RUN", help="Every episode of a run instead of one.")
@json_option
@runs_option
def replay(episode: str | None, run: str | None, whole_run: str | None, as_json: bool, root: Path) -> None:
    """Drive EPISODE's state machine again from its recorded facts, and compare all that follows from them.

    Exit status: 0 identical, 1 something differs or is damaged, 2 no such run or episode.
    """
    if (episode is None) == (whole_run is None):
        raise click.UsageError("name an episode, or give --all RUN for every episode of a run")
    if whole_run is not None:
        tally = with_run(root, whole_run, lambda source: replay_all(source, progress_on_terminal()))
        _show_tally(tally, as_json=as_json)
        sys.exit(0 if tally.is_identical else 1)
    name = episode or ""
    verdict = with_run(root, run, lambda source: replay_one(source, name))
    _show_verdict(verdict, as_json=as_json)
    sys.exit(0 if verdict.is_identical else 1)


def with_run(root: Path, run: str | None, work: Callable[[RunSource], Awaitable[T]]) -> T:
    """Work on a run, whatever state it is in."""

    async def opened() -> T:
        platform = SystemPlatform()
        async with open_run(Workspace(root), run, platform, f"replay-{platform.new_id()[:6]}") as source:
            return await work(source)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(opened())


def progress_on_terminal() -> Callable[[int], None]:
    """Says how many episodes are done, on a terminal."""
    if not sys.stderr.isatty():
        return lambda _: None

    def say(n: int) -> None:
        sys.stderr.write(f"\r{n:,} episodes replayed ")
        sys.stderr.flush()

    return say


def _show_tally(tally: Tally, *, as_json: bool) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if as_json:
        click.echo(msgspec.json.encode(tally).decode())
        return
    for difference in tally.differences:
        click.echo(str(difference))
    if tally.n_differences > len(tally.differences):
        click.echo(f"and {tally.n_differences - len(tally.differences)} more differences")
    click.echo(
        f"run '{tally.run}': {tally.episodes} episodes, {tally.identical} identical, {tally.different} different; "
        f"{tally.partial} of them as far as their facts go, {tally.graded_again} graded again; {tally.n_facts:,} facts"
    )


def _show_verdict(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"identical": verdict.is_identical, **msgspec.to_builtins(verdict)}).decode())
        return
    for difference in verdict.differences:
        click.echo(str(difference))
    told = "identical" if verdict.is_identical else f"{len(verdict.differences)} differences"
    rest = ", as far as its facts go" if verdict.partial else ""
    reward = ", its reward too" if verdict.graded else ""
    click.echo(f"{verdict.episode}: {told}{rest}{reward}; {verdict.n_facts} facts")
