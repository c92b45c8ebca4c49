"""The command `asearch`: one module a subcommand, loaded when it is used."""

import importlib
import sys

import click

from asearch.errors import AsearchError

COMMANDS = {
    "up": "actors.cli.up",
    "down": "actors.cli.down",
    "status": "actors.cli.status",
    "train": "actors.cli.train",
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


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is called, so that `asearch --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

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
    """Run the command; errors of ours are printed without a traceback and give their exit code."""
    try:
        cli(standalone_mode=True)
    except AsearchError as error:
        click.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except BaseExceptionGroup as group:
        known = _first_of_ours(group)
        if known is None:
            raise
        click.secho(f"error: {known}", err=True, fg="red")
        sys.exit(known.exit_code)


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> AsearchError | None:
    for error in group.exceptions:
        if isinstance(error, AsearchError):
            return error
        if isinstance(error, BaseExceptionGroup) and (found := _first_of_ours(error)) is not None:
            return found
    return None


if __name__ == "__main__":
    main()
