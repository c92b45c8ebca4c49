"""`asearch completion SHELL`: the script that completes commands, options, runs and episodes."""

import click
from click.shell_completion import get_completion_class

from asearch.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", epilog='Example: eval "$(asearch completion bash)". Exit status: 0 printed, 2 no such shell.')
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; evaluate it where the shell starts."""
    found = get_completion_class(shell)
    if found is None:
        raise ConfigError(f"click does not know how to complete in {shell}")
    click.echo(found(ctx.find_root().command, {}, "asearch", "_ASEARCH_COMPLETE").source())
