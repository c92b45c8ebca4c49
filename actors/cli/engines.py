"""`asearch engines`: the engines of a live run, and how more of them join it or some leave."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import uvloop

from actors.cli.columns import table, terminal_width
from actors.runtime.bus import Bus
from actors.runtime.following import Vitals
from actors.runtime.jetstream import connect
from actors.runtime.membership import membership_of
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile
from actors.runtime.workspace import Workspace
from asearch.errors import AsearchError, InputError, NoResponderError
from schemas.commands import AddEngines, EnginesChanged, Heartbeat, Message, RemoveEngines

LISTEN_S = 2.2
"""Two heartbeats."""
ANSWER_S = 15.0
HEADINGS = ("engine", "state", "version", "running", "pending", "tokens/s", "pid", "kept by")
T = TypeVar("T")

_run = click.option("--run", "run", help="The run; the live one unless given.")
_runs = click.option(
    "--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
_json = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")


@dataclass(frozen=True)
class EngineLine:
    """One engine. `running` and `pending`: requests of all drivers that it generates for, and that wait in it."""

    engine: str
    state: str
    version: str | None = None
    running: int = 0
    pending: int = 0
    tokens_per_s: float | None = None
    pid: int | None = None
    is_kept: bool = True
    """Whether the run keeps it alive; else it joined by itself."""
    leaves_by_ns: int = 0

    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        rate = "-" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f}"
        counts = (str(self.running), str(self.pending), rate, "-" if self.pid is None else str(self.pid))
        return (self.engine, self.state, self.version or "-", *counts, "the run" if self.is_kept else "nobody")


@click.group("engines", invoke_without_command=True, epilog="Example: asearch engines add 2; asearch engines remove engine-1.")
@_run
@_runs
@_json
@click.pass_context
def engines(ctx: click.Context, run: str | None, root: Path, as_json: bool) -> None:
    """Show the engines of a live run; `add` and `remove` change which they are while it trains.

    Exit status: 0 shown or done, 2 there is no such live run or engine, 1 the run did not answer.
    """
    if ctx.invoked_subcommand is None:
        content, run_dir = _live_run(root, run)
        lines = _with_bus(content, lambda bus: _listen(bus, content, run_dir))
        click.echo(_told([asdict(line) for line in lines]) if as_json else "\n".join(_table(lines)))


@engines.command("add")
@click.argument("n", type=click.IntRange(1, 64))
@_run
@_runs
@_json
def add(n: int, run: str | None, root: Path, as_json: bool) -> None:
    """Start N engines more: each loads the newest weights, and takes requests then."""
    _change(root, run, AddEngines(n=n), as_json, "added")


@engines.command("remove")
@click.argument("which", metavar="ID...|N", nargs=-1, required=True)
@click.option("--now", is_flag=True, help="SIGKILL, as a preemption without notice; tokens not streamed yet are lost.")
@_run
@_runs
@_json
def remove(which: tuple[str, ...], now: bool, run: str | None, root: Path, as_json: bool) -> None:
    """End engines by name, or the N youngest: each hands its requests over to the others, with the tokens so far."""
    by_number = len(which) == 1 and which[0].isdecimal()
    if by_number and int(which[0]) < 1:
        raise click.BadParameter("remove at least one engine", param_hint="N")
    command = RemoveEngines(n=int(which[0]), now=now) if by_number else RemoveEngines(engines=list(which), now=now)
    _change(root, run, command, as_json, "removed")


def _change(root: Path, run: str | None, command: Message, as_json: bool, done: str) -> None:
    content, _ = _live_run(root, run)
    reply = _with_bus(content, lambda bus: _ask(bus, content.run, command))
    if reply.error:
        raise InputError(reply.error)
    if as_json:
        click.echo(_told({done: reply.changed, "engines": reply.engines}))
        return
    click.echo(f"{done}: {', '.join(reply.changed)}; the run keeps {', '.join(reply.engines) or 'no engine: episodes wait'}")


async def _ask(bus: Bus, run: str, command: Message) -> EnginesChanged:
    try:
        reply = await bus.request(command, key=run, timeout_s=ANSWER_S)
    except NoResponderError as error:
        raise AsearchError(f"nobody changes the engines of run '{run}': its actors have not started, or it ends") from error
    if not isinstance(reply, EnginesChanged):
        raise AsearchError(f"run '{run}' answered with {type(reply).__name__}")
    return reply


async def _listen(bus: Bus, content: RunFile, run_dir: Path) -> list[EngineLine]:
    vitals = Vitals()

    async def on_heartbeat(incoming: object) -> None:
        message = getattr(incoming, "message", None)
        if isinstance(message, Heartbeat) and message.actor == "engine":
            vitals.heard(message)

    await bus.subscribe(Heartbeat, ">", on_heartbeat)
    await bus.platform.sleep(LISTEN_S)
    kept = membership_of(run_dir, content.settings).engines
    names = [*kept, *sorted(name for name in vitals.latest if name not in kept)]
    return [_line(name, vitals, is_kept=name in kept) for name in names]


def _line(name: str, vitals: Vitals, *, is_kept: bool) -> EngineLine:
    beat = vitals.latest.get(name)
    if beat is None:
        return EngineLine(name, "silent", is_kept=is_kept)
    n_all, n_pending = (int(beat.gauges.get(gauge, 0)) for gauge in ("n_running", "n_pending"))
    rate = vitals.rate(name, "n_tokens")
    return EngineLine(
        engine=name,
        state=beat.state,
        version=None if beat.version is None else str(beat.version),
        running=n_all - n_pending,
        pending=n_pending,
        tokens_per_s=None if rate is None else round(rate, 1),
        pid=beat.pid,
        is_kept=is_kept,
        leaves_by_ns=beat.leaves_by_ns,
    )


def _table(lines: list[EngineLine]) -> list[str]:
    right = frozenset({"running", "pending", "tokens/s", "pid"})
    return table(HEADINGS, [line.cells() for line in lines], right=right, width=terminal_width())


def _live_run(root: Path, run: str | None) -> tuple[RunFile, Path]:
    workspace = Workspace(root)
    live = [content for content in workspace.live_runs() if run in (None, content.run)]
    if not live:
        raise InputError(f"{'no run is' if run is None else f'run {run!r} is not'} live in {root}")
    if len(live) > 1:
        raise InputError(f"several runs are live in {root}: name one with --run ({', '.join(each.run for each in live)})")
    return live[0], workspace.run_dir(live[0].run)


def _with_bus(content: RunFile, work: Callable[[Bus], Awaitable[T]]) -> T:
    async def connected() -> T:
        platform = SystemPlatform()
        bus = await connect(content.broker_url, content.run, f"engines-{platform.new_id()[:6]}", platform)
        try:
            return await work(bus)
        finally:
            await bus.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(connected())


def _told(content: object) -> str:
    return msgspec.json.encode(content).decode()
