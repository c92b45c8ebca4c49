"""`asearch logs`: what the actors' logs say of an episode, or the log of an actor."""

import time
from collections import deque
from pathlib import Path

import click

from actors.cli import looking
from actors.cli.log_lines import About, LogFile, LogLine, line_json, line_text
from actors.runtime.run_source import choose_run
from actors.runtime.workspace import Workspace, is_live
from asearch.errors import InputError
from asearch.traces.plain_text import plain_line

POLL_S = 0.3


@click.command("logs", epilog=f"Example: asearch logs --actor trainer-0 --tail 20. {looking.EXIT_CODES}")
@click.argument("episode", required=False, shell_complete=looking.complete_episode)
@looking.run_option
@click.option("--actor", "actors", multiple=True, help="Only the log of this actor or server, e.g. trainer-0.")
@click.option("--tail", type=click.IntRange(min=1), help="Only the last N lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the run is over or Ctrl-C.")
@looking.json_option
@looking.runs_option
def logs(
    episode: str | None, run: str | None, actors: tuple[str, ...], tail: int | None, follow: bool, as_json: bool, root: Path
) -> None:
    """Show every log line that is about EPISODE, or those of --actor, from all of a run's logs, by time.

    A line is about an episode if it names it, its trace or something of it. Files alone are read: no broker is needed.
    """
    if episode is None and not actors:
        raise click.UsageError("name an episode, or an actor with --actor")
    workspace = Workspace(root)
    content = choose_run(workspace, run)
    files = _files(workspace.run_dir(content.run) / "logs", actors)
    try:
        about = _about(content.run, episode)
        lines = _more(files, about)
        if episode is not None and not lines and not follow:
            # An episode that is open is in no archive: what was typed is completed only where nothing is about it.
            about = _about(content.run, _named(workspace.run_dir(content.run), content.run, episode))
            lines = _more(_files(workspace.run_dir(content.run) / "logs", actors), about)
        _print(lines if tail is None else list(deque(lines, maxlen=tail)), as_json=as_json)
        if not lines and not follow:
            click.echo(
                f"nothing in {len(files)} logs of run '{content.run}'" + (f" about {plain_line(episode)}" if episode else ""),
                err=True,
            )
        live = follow
        while live:
            live = is_live(content)
            time.sleep(POLL_S)
            _print(_more(files, about), as_json=as_json)
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _about(run: str, episode: str | None) -> About | None:
    if episode is None:
        return None
    from asearch.traces.names import trace_id_of

    return About(episode, trace_id_of(run, episode))


def _more(files: list[LogFile], about: About | None) -> list[LogLine]:
    """The lines that were not read yet, by time."""
    found = (line for file in files for line in file.more() if about is None or about(line))
    return sorted(found, key=lambda line: line.at)


def _files(folder: Path, actors: tuple[str, ...]) -> list[LogFile]:
    paths = sorted(folder.glob("*.log"))
    known = [path.stem for path in paths]
    for name in actors:
        if name not in known:
            raise InputError(f"there is no log of '{plain_line(name)}' in {folder}; there are {', '.join(known) or 'none'}")
    return [LogFile(path) for path in paths if not actors or path.stem in actors]


def _named(run_dir: Path, run: str, episode: str) -> str:
    """The whole name, where the archive knows it; else what was typed: an open episode is in no archive."""
    from actors.runtime.archive_index import ArchiveIndex
    from asearch.traces.names import named_episode

    index = ArchiveIndex(run_dir / "archive")
    index.refresh()
    # Of an episode that is open, or unknown, nothing is said; only names that several may have are refused.
    return named_episode(episode, frozenset(index), run) if any(_fits(episode, name) for name in index) else episode


def _fits(episode: str, name: str) -> bool:
    return name.startswith(episode) or name.endswith(episode)


def _print(lines: list[LogLine], *, as_json: bool) -> None:
    for line in lines:
        if as_json:
            looking.say_json(line_json(line))
        else:
            looking.say(line_text(line))
