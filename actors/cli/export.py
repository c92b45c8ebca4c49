"""`asearch export EPISODE`: one episode as one HTML file that opens anywhere."""

from pathlib import Path

import click

from actors.cli import looking
from actors.runtime.run_source import RunSource
from asearch.errors import InputError

ENDING = ".html"


@click.command("export", epilog=f"Example: asearch export t-2-0-1.html --run toy-3. {looking.EXIT_CODES}")
@looking.episode_argument
@looking.run_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file; EPISODE.html unless given. One that is there is replaced."
)
@looking.runs_option
def export(episode: str, run: str | None, out: Path | None, root: Path) -> None:
    """Write an episode to one self-contained HTML file: no script, nothing loaded, light and dark, printable.

    EPISODE may end with .html. Everything is in it, also the tokens. The file's path goes to stdout.
    """
    from actors.runtime.episode_source import told_episode
    from asearch.traces.html import html_of

    given = Path(episode)

    async def work(source: RunSource) -> None:
        found = await told_episode(source, given.name.removesuffix(ENDING))
        path = out or (given if given.suffix == ENDING else Path(found.row.episode + ENDING))
        try:
            path.write_text(html_of(found), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}. Choose another file with --out.") from error
        looking.say(str(path))

    looking.looked(root, run, work)
