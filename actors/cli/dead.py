"""`asearch dead`: the messages that were refused, why, and how to offer them again."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import uvloop

from actors.cli import dead_letters
from actors.cli.dead_letters import Letter, NotRequeuedError, printable
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.jsapi import STREAM_MISSING, ApiRefusal
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import read_run_file
from actors.runtime.workspace import Workspace, is_live
from asearch.errors import InputError

T = TypeVar("T")

runs_option = click.option(
    "--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)


@click.group("dead")
def dead() -> None:
    """Show what actors refused (bytes that are no event, facts that always fail), and offer it to them again.

    Works on a live run and on a stopped one. Exit status: 0 done, 1 not everything was requeued, 2 no such run or message.
    """


@dead.command("list")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")
@click.option("--reason", default="", help="Only those whose reason holds this text.")
@runs_option
def list_letters(run: str | None, as_json: bool, reason: str, root: Path) -> None:
    """List the refused messages of RUN (the newest run unless given)."""
    workspace = Workspace(root)
    name = run or _newest(workspace)
    letters = [each for each in _with_bus(workspace, name, dead_letters.letters) if reason in each.reason]
    if as_json:
        click.echo(msgspec.json.encode({"run": name, "n": len(letters), "dead": letters}).decode())
        return
    for letter in letters:
        click.echo(_line(letter))
    click.echo(f"{len(letters)} refused messages in run {name}" + (f" with {printable(reason)!r}" if reason else ""), err=True)


@dead.command("show")
@click.argument("run")
@click.argument("letter")
@click.option("--raw", is_flag=True, help="Write the refused bytes themselves to stdout, for a file or a pipe.")
@runs_option
def show(run: str, letter: str, raw: bool, root: Path) -> None:
    """Show one refused message of RUN: LETTER is its id (dead-trace-12) or its sequence in DEAD."""
    found, data = _with_bus(Workspace(root), run, lambda bus: dead_letters.find(bus, letter))
    if raw:
        if sys.stdout.isatty():
            raise InputError("refused bytes may hold anything: send --raw to a file or a pipe, not to a terminal")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    click.echo(_line(found))
    click.echo(dead_letters.content_of(data))


@dead.command("requeue")
@click.argument("run")
@click.argument("letters", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every message that was not requeued yet.")
@click.option("--reason", default="", help="With --all: only those whose reason holds this text.")
@runs_option
def requeue(run: str, letters: tuple[str, ...], everything: bool, reason: str, root: Path) -> None:
    """Append refused messages of RUN to their subjects again, for a build that can take them.

    Outcomes and the trainer's journal are never requeued; messages of PLAN only while the run is stopped.
    """
    if everything == bool(letters) or (reason and not everything):
        raise click.UsageError("name messages, or give --all (with --reason, if not all of them are meant)")
    workspace = Workspace(root)
    live = is_live(read_run_file(workspace.run_dir(run)))

    async def work(bus: Bus) -> int:
        known = await dead_letters.letters(bus)
        chosen = [each for each in known if not each.requeued and reason in each.reason] if everything else []
        chosen += [dead_letters.named(known, name) for name in letters]
        n_left = 0
        for letter in chosen:
            try:
                sequence = await dead_letters.requeue(bus, letter, live=live)
            except NotRequeuedError as error:
                n_left += 1
                click.secho(f"{letter.id}: not requeued: {error}", err=True, fg="yellow")
            else:
                click.echo(f"{letter.id}: requeued at {letter.stream} {sequence}")
        click.echo(f"{len(chosen) - n_left} of {len(chosen)} requeued", err=True)
        return n_left

    sys.exit(1 if _with_bus(workspace, run, work) else 0)


def _line(letter: Letter) -> str:
    at = datetime.fromtimestamp(letter.at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    state = f"  requeued at {letter.requeued}" if letter.requeued else ""
    where = f"{letter.stream} {letter.sequence}  {letter.subject}"
    return printable(
        f"{letter.id}  [{letter.dead_sequence}]  {at}  {where}  {letter.size_bytes} B  {letter.actor}{state}: {letter.reason}"
    )


def _newest(workspace: Workspace) -> str:
    runs = workspace.runs()
    if not runs:
        raise InputError(f"there is no run in {workspace.root}")
    return runs[-1].run


def _with_bus(workspace: Workspace, run: str, work: Callable[[Bus], Awaitable[T]]) -> T:
    """Work on a run's streams through the workspace's broker; one that does not run is started for that time."""
    read_run_file(workspace.run_dir(run))

    async def connected() -> T:
        platform = SystemPlatform()
        url, started = await workspace.broker(platform)
        try:
            bus = await connect(url, run, "operator", platform)
            try:
                return await work(bus)
            finally:
                await bus.close()
        except ApiRefusal as error:
            if error.err_code != STREAM_MISSING:
                raise
            raise InputError(f"run '{run}' has no streams in the broker's store: its actors never started") from error
        finally:
            await workspace.release(started, run)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(connected())
