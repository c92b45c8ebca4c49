"""What the commands that look at runs share: their options, how a run is opened, how output ends."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import uvloop
from click.shell_completion import CompletionItem

from actors.cli.output import forget_stdout
from actors.runtime.platform import SystemPlatform
from actors.runtime.workspace import Workspace

if TYPE_CHECKING:
    from actors.runtime.run_source import RunSource

T = TypeVar("T")

ACTOR = "operator"
"""As whom these commands connect: they read, and write nothing."""
MAX_COMPLETIONS = 200
EXIT_CODES = "Exit status: 0 shown, 2 there is no such run, episode or option, 1 the broker failed."

runs_option = click.option(
    "--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")


def run_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, or --run as other commands have it: the live run, else the newest, unless given."""

    @functools.wraps(function)
    def called(run: str | None, named_run: str | None, **options: Any) -> Any:
        if None not in (run, named_run):
            raise click.UsageError("name the run once: as RUN or with --run")
        return function(run=run if run is not None else named_run, **options)

    text = "The same as RUN."
    with_option = click.option("--run", "named_run", shell_complete=complete_run, help=text)(called)
    return click.argument("run", required=False, shell_complete=complete_run)(with_option)


def run_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--run, where the argument is something else."""
    text = "The run; the live one, else the newest, unless given."
    return click.option("--run", "run", shell_complete=complete_run, help=text)(function)


def episode_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """EPISODE: a name, or a beginning or an end of one that no other has."""
    return click.argument("episode", shell_complete=complete_episode)(function)


def looked(root: Path, run: str | None, work: "Callable[[RunSource], Awaitable[T]]") -> T | None:
    """Work on a run in whatever state it is; None where Ctrl-C, or a reader of our output that left, ended it.

    Says on stderr where only the archive is left. Raises InputError.
    """
    # Not by every command that takes a run: those that open none shall begin at once.
    from actors.runtime.run_source import open_run

    async def opened() -> T:
        async with open_run(Workspace(root), run, SystemPlatform(), ACTOR) as source:
            if source.bus is None:
                note(f"the broker's store of run '{source.run}' is gone, or was never written: only its archive is read")
            found = await work(source)
            for problem in source.problems:
                note(problem)
            return found

    return finishing(opened)


def finishing(work: Callable[[], Awaitable[T]]) -> T | None:
    """Run to the end; Ctrl-C and a closed pipe end it too, without a word."""

    async def whole() -> T:
        return await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(whole())
        except KeyboardInterrupt:
            return None
        except BrokenPipeError:
            forget_stdout()
            return None
        except BaseExceptionGroup as group:
            if group.split(BrokenPipeError)[1] is not None:
                raise
            forget_stdout()
            return None


def say(line: str) -> None:
    """A line on stdout. Raises BrokenPipeError where nobody reads it."""
    click.echo(line)


def say_json(content: object) -> None:
    """A value as one line of JSON on stdout."""
    say(msgspec.json.encode(content).decode())


def note(text: str) -> None:
    """A remark on stderr."""
    click.secho(text, err=True, fg="yellow")


# --- completion of names ---


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of runs in the folder, from their run files."""
    from actors.runtime.run_files import RUN_FILE

    root = _root_of(ctx)
    names = sorted(path.parent.name for path in root.glob(f"*/{RUN_FILE}"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_episode(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the episodes that ended last, from the end of the archive's outcomes: no broker is asked."""
    from actors.cli.completing import ended_episodes

    names = ended_episodes(_root_of(ctx), ctx.params.get("run"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)][:MAX_COMPLETIONS]


def _root_of(ctx: click.Context) -> Path:
    return Path(ctx.params.get("root") or "runs")
