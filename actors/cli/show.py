"""`asearch show EPISODE`: one episode as text, turn by turn."""

from pathlib import Path

import click

from actors.cli import looking
from actors.runtime.run_source import RunSource


@click.command("show", epilog=f"Example: asearch show t-2-0-1 --full | less. {looking.EXIT_CODES}")
@looking.episode_argument
@looking.run_option
@click.option("--full", is_flag=True, help="Nothing shortened, and every token with its log-probability.")
@looking.json_option
@looking.runs_option
def show(episode: str, run: str | None, full: bool, as_json: bool, root: Path) -> None:
    """Show an episode: question, thoughts, queries, results, what the policy saw, answer, reward, what became of it.

    A beginning or an end of its name is enough where no other episode has it. With --json, one document {run, row, items, key,
    trace_id, notes}, and with --full tokens.
    """
    from actors.cli.episode_text import text_of
    from actors.runtime.episode_source import told_episode
    from asearch.traces.told import to_json

    async def work(source: RunSource) -> None:
        found = await told_episode(source, episode)
        if as_json:
            looking.say_json(to_json(found, with_tokens=full))
        else:
            for line in text_of(found, full=full):
                looking.say(line)

    looking.looked(root, run, work)
