"""The command `asearch`: one module a subcommand, loaded when it is used."""

import importlib
import sys

import click

from actors.cli.output import forget_stdout, unwritable
from asearch.errors import AsearchError, InputError

COMMANDS = {
    "up": "actors.cli.up",
    "down": "actors.cli.down",
    "status": "actors.cli.status",
    "runs": "actors.cli.runs",
    "watch": "actors.cli.watch",
    "episodes": "actors.cli.episodes",
    "show": "actors.cli.show",
    "events": "actors.cli.events",
    "export": "actors.cli.export",
    "logs": "actors.cli.logs",
    "completion": "actors.cli.completion",
    "train": "actors.cli.train",
    "engines": "actors.cli.engines",
    "view": "actors.cli.view",
    "audit": "actors.cli.audit",
    "dead": "actors.cli.dead",
    "doctor": "actors.cli.doctor",
    "replay": "actors.cli.replay",
    "regrade": "actors.cli.regrade",
    "sink": "actors.cli.sink",
    "world": "actors.cli.world",
    "warmstart": "actors.cli.warmstart",
    "archive": "actors.cli.archive",
    "behaviour": "actors.cli.behaviour",
    "dataset": "actors.cli.dataset",
    "bench": "actors.cli.bench",
    "actor": "actors.cli.actor",
}

SECTIONS = {
    "Train": {
        "up": "train here and show it live; attach to a run that is live",
        "train": "train a recipe to its end and report",
        "warmstart": "write the model that a run would begin with",
        "world": "write a generated wiki with its questions",
    },
    "Look": {
        "runs": "every run: state, steps, accuracy, size",
        "status": "every actor of the live runs; exit status for scripts",
        "watch": "episodes by stage, live",
        "view": "the page of a run in the browser",
        "episodes": "the episodes of a run, filtered and sorted",
        "show": "one episode, turn by turn",
        "events": "any stream of a run, from any sequence or time",
        "logs": "what the logs say of an episode",
        "export": "one episode as one HTML file",
        "behaviour": "what the policy does, by rules on its traces",
    },
    "Use": {
        "archive": "write a run's tables to Parquet",
        "dataset": "episodes for SFT, rejection sampling and preferences",
        "replay": "drive recorded episodes again and compare",
        "regrade": "grade a run again with another reward",
        "sink": "send what a run says to TensorBoard or Weights & Biases",
    },
    "Operate": {
        "down": "stop live runs; leave no process",
        "engines": "the engines of a live run; add and remove them",
        "doctor": "what is wrong with this machine, each with its fix",
        "audit": "recompute the accounting of a run",
        "dead": "refused messages, and their way back",
        "bench": "measure the whole system",
        "completion": "complete commands, runs and episodes in your shell",
        "actor": "one actor process, as supervisors start it",
    },
}
"""How `asearch --help` orders them, with their purpose; what is in none of these stands at its end."""


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is called, so that `asearch --help` stays quick."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand. A reader of our output that leaves, as `head` does, ends it without a word."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            forget_stdout()
            ctx.exit(0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with its purpose, by what one wants to do; only those without a section are imported."""
        width = max(map(len, COMMANDS))
        for title, purposes in {**SECTIONS, "More": self._others(ctx)}.items():
            rows = [(name.ljust(width), purpose) for name, purpose in purposes.items() if name in COMMANDS]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _others(self, ctx: click.Context) -> dict[str, str]:
        known = {name for purposes in SECTIONS.values() for name in purposes}
        found = {name: self.get_command(ctx, name) for name in COMMANDS if name not in known}
        return {name: command.get_short_help_str(60) for name, command in found.items() if command is not None}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="asearch")
def cli() -> None:
    """Train LLM search agents with fully asynchronous reinforcement learning."""


def main() -> None:
    """Run the command; errors of ours, and files that cannot be written, are said without a traceback."""
    try:
        cli(standalone_mode=True)
    except AsearchError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        said, status = unwritable(error), 1 if error.filename is None else InputError.exit_code
        if said is None:
            raise
        forget_stdout()
        _say_error(said)
        sys.exit(status)
    except BaseExceptionGroup as group:
        known = _first_of_ours(group)
        if known is None:
            raise
        _say_error(str(known))
        sys.exit(known.exit_code)


def _say_error(text: str) -> None:
    """What an error quotes may come from a record or a page: none of it moves the terminal's cursor or colours."""
    from asearch.traces.plain_text import plain

    click.secho(f"error: {plain(text)}", err=True, fg="red")


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> AsearchError | None:
    for error in group.exceptions:
        if isinstance(error, AsearchError):
            return error
        if isinstance(error, BaseExceptionGroup) and (found := _first_of_ours(error)) is not None:
            return found
    return None


if __name__ == "__main__":
    main()
