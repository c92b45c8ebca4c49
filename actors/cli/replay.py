"""`asearch replay`: drive recorded episodes again, grade them with another reward, or go on from one of their turns."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import uvloop

from actors.cli.replaying import telling
from actors.cli.replaying.continuing import Continued, changed, continue_from, grade_again
from actors.cli.replaying.everything import replay_all
from actors.cli.replaying.single import replay_one
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import RunSource, open_run
from actors.runtime.workspace import Workspace

T = TypeVar("T")

runs_option = click.option(
    "--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")


@click.command("replay")
@click.argument("episode", required=False)
@click.option("--run", "run", help="The run of the episode; the live one, else the newest.")
@click.option("--all", "whole_run", metavar="RUN", help="Every episode of a run instead of one.")
@click.option("--grader", "grader", metavar="NAME", help="Grade the episode with another reward, and show both.")
@click.option("--from-turn", "turn", type=click.IntRange(min=0), help="Go on from the beginning of this turn, counted from 0.")
@click.option("--engine", "engine", metavar="URL", help="With --from-turn: a server with SGLang's interface, or `newest`.")
@click.option("--seed", "seed", type=int, help="With --from-turn: another sampling seed than the recorded one.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. agent.temperature=0.5.")
@json_option
@runs_option
def replay(
    episode: str | None,
    run: str | None,
    whole_run: str | None,
    grader: str | None,
    turn: int | None,
    engine: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
    root: Path,
) -> None:
    """Drive EPISODE's state machine again from its recorded facts, and compare all that follows from them.

    \b
    --all RUN    every episode of a run: the archive line by line, then what only the streams hold
    --grader     the episode's reward beside that of another grader
    --from-turn  what the policy at --engine does from that turn on, with the run's tools and reward;
                 `newest` starts an embedded engine with the run's newest weights

    Nothing is written to the run's streams. Exit status: 0 identical (or done), 1 something differs or is damaged, 2 no such run
    or episode.
    """
    _check_usage(episode, whole_run, grader, turn, engine, seed, overrides)
    if whole_run is not None:
        tally = with_run(root, whole_run, lambda source: replay_all(source, progress_on_terminal()))
        clear_progress()
        click.echo(telling.json_line(tally)) if as_json else telling.tell_tally(tally)
        sys.exit(0 if tally.is_identical else 1)
    name = episode or ""
    if turn is not None:
        told = with_run(root, run, lambda source: _continued(source, name, turn, engine or "", grader, seed, overrides))
        click.echo(telling.json_line(told)) if as_json else telling.tell_continued(told)
        return
    if grader or overrides:
        graded = with_run(root, run, lambda source: grade_again(source, name, overrides, grader))
        click.echo(telling.json_line(graded)) if as_json else telling.tell_grades(graded)
        return
    verdict = with_run(root, run, lambda source: replay_one(source, name))
    fields = {"identical": verdict.is_identical, **msgspec.structs.asdict(verdict)}
    click.echo(msgspec.json.encode(fields).decode()) if as_json else telling.tell_verdict(verdict)
    sys.exit(0 if verdict.is_identical else 1)


def _check_usage(
    episode: str | None,
    whole_run: str | None,
    grader: str | None,
    turn: int | None,
    engine: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Raises UsageError for options that do not go together."""
    if (episode is None) == (whole_run is None):
        raise click.UsageError("name an episode, or give --all RUN for every episode of a run")
    if whole_run is not None and (grader or overrides or turn is not None):
        raise click.UsageError("--all compares only; `asearch regrade RUN` grades a whole run again")
    if (turn is None) != (engine is None):
        raise click.UsageError("--from-turn and --engine go together")
    if seed is not None and turn is None:
        raise click.UsageError("--seed needs --from-turn: recorded tokens are never sampled again")


async def _continued(
    source: RunSource, episode: str, turn: int, engine: str, grader: str | None, seed: int | None, overrides: tuple[str, ...]
) -> Continued:
    settings = changed(source.content.settings, overrides, grader)
    return await continue_from(
        source, episode, turn, engine, settings, seed, SystemPlatform(), lambda text: click.echo(text, err=True)
    )


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
        sys.stderr.write(f"\r{n:,} episodes done ")
        sys.stderr.flush()

    return say


def clear_progress() -> None:
    """Take the progress off the terminal."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
