"""`asearch events`: any stream of a run, typed, from any sequence or time, live or over."""

import asyncio
import contextlib
import shlex
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import click

from actors.cli import looking
from actors.cli.event_choice import STREAMS, TYPES, Choice, choose, moment
from actors.runtime.bus import Bus, Stored
from actors.runtime.event_history import ARCHIVED, archived_messages, is_purged, last_messages, merged_by_time, with_archive
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import RunSource, choose_run
from actors.runtime.workspace import Workspace, is_live
from asearch.errors import BusError, InputError
from schemas.topology import broker_stream

WATCH_S = 0.5
SETTLE_S = 1.0
"""How long a follower still listens after the run is over."""
QUEUE = 256


@dataclass(frozen=True)
class Wanted:
    """The options that say how much is shown, and how."""

    last: int | None
    limit: int | None
    follow: bool
    as_json: bool
    columns: bool
    archive: bool | None


@click.command("events", epilog=f"Example: asearch events --subject 'trace.tool.requested.>' --follow. {looking.EXIT_CODES}")
@looking.run_argument
@click.option("--stream", "streams", multiple=True, type=click.Choice(STREAMS), help="A stream; all but blobs unless given.")
@click.option("--subject", "subjects", multiple=True, metavar="FILTER", help="With * and >; `trace.tool.requested.>` is enough.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help=f"One of {', '.join(TYPES)}.")
@click.option("--key", metavar="EPISODE", help="Messages under one key: an episode, a group, a task.")
@click.option("--from", "begin", metavar="SEQ|TIME", help="A sequence, an ISO 8601 time, or a while ago: -90s, -5m, -2h.")
@click.option("--last", type=click.IntRange(min=1), help="Only the last N; with --follow, begin with these.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after N messages.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the run is over or Ctrl-C.")
@click.option("--columns", is_flag=True, help="Token columns as lists and bytes as base64 instead of their size.")
@click.option(
    "--archive/--no-archive", default=None, help="Include purged messages; on where all of a purged stream is asked for."
)
@looking.json_option
@looking.runs_option
def events(
    run: str | None,
    streams: tuple[str, ...],
    subjects: tuple[str, ...],
    types: tuple[str, ...],
    key: str | None,
    begin: str | None,
    root: Path,
    **options: object,
) -> None:
    """Show the events of RUN: plan, trace, outcomes, policy, refused ones, and with --stream blobs payloads too.

    Several streams are merged by the broker's time. With --json, one line an event: {stream, sequence, subject, at, event}.
    With --follow what there is comes first, too: begin later with --last or --from. The same as a command of NATS is on stderr.
    """
    workspace = Workspace(root)
    wanted = Wanted(**options)  # pyright: ignore[reportArgumentType]
    if wanted.last is not None and begin is not None:
        raise click.UsageError("give --from or --last, not both")
    name = choose_run(workspace, run).run
    choice = Choice(choose(name, streams, subjects, types, key), *moment(begin, SystemPlatform().now_ns()))

    async def work(source: RunSource) -> None:
        n_shown = 0
        async with aclosing(_messages(source, choice, wanted)) as messages:
            async for stored in messages:
                _show(stored, wanted)
                n_shown += 1
                if n_shown == wanted.limit:
                    return

    looking.looked(root, name, work)


def _show(stored: Stored, wanted: Wanted) -> None:
    from actors.cli.event_text import event_json, event_line

    if wanted.as_json:
        looking.say_json(event_json(stored, columns=wanted.columns))
    else:
        looking.say(event_line(stored, columns=wanted.columns))


async def _messages(source: RunSource, choice: Choice, wanted: Wanted) -> AsyncGenerator[Stored, None]:
    """What is wanted, in order."""
    if source.bus is None:
        async for stored in _of_archive(source, choice, wanted):
            yield stored
        return
    _say_commands(source, choice, wanted)
    # Read before the rest: what is stored from here on is the follower's.
    ends = {stream: await source.bus.last_sequence(stream) for stream in choice.filters}
    async with aclosing(_recorded(source, source.bus, choice, wanted)) as recorded:
        async for stored in recorded:
            if stored.sequence <= ends[stored.stream] and choice.takes(stored.stream, stored.subject):
                yield stored
    if wanted.follow:
        begins = {stream: max(end + 1, choice.begin or 1) for stream, end in ends.items()}
        async with aclosing(_followed(source, source.bus, choice, begins)) as followed:
            async for stored in followed:
                if choice.takes(stored.stream, stored.subject):
                    yield stored


async def _begin(bus: Bus, stream: str, choice: Choice) -> int:
    if choice.begin_ns is not None:
        return await bus.sequence_at(stream, choice.begin_ns)
    return choice.begin or 1


async def _recorded(source: RunSource, bus: Bus, choice: Choice, wanted: Wanted) -> AsyncGenerator[Stored, None]:
    """What there is now, merged by time."""
    if wanted.last is not None:
        found: list[Stored] = []
        for stream in choice.filters:
            found += await last_messages(bus, stream, choice.reading(stream), wanted.last, choice.takes)
        for stored in sorted(found, key=lambda each: each.at_ns)[-wanted.last :]:
            yield stored
        return
    readers = [await _stream(source, bus, stream, choice, wanted) for stream in choice.filters]
    async with contextlib.AsyncExitStack() as stack:
        for reader in readers:
            await stack.enter_async_context(aclosing(reader))
        async for stored in merged_by_time(readers):
            yield stored


async def _stream(source: RunSource, bus: Bus, stream: str, choice: Choice, wanted: Wanted) -> AsyncGenerator[Stored, None]:
    begin = await _begin(bus, stream, choice)
    reader = bus.read(stream, subjects=choice.reading(stream), start_sequence=begin, follow=False)
    if stream not in ARCHIVED or wanted.archive is False:
        return reader
    if wanted.archive is None and not (await is_purged(bus, stream) and (choice.from_start or begin == 1)):
        return reader
    looking.note(f"{stream}: purged messages come from the archive, with their writer's clock")
    archived = archived_messages(source.run_dir / "archive", source.run, stream)
    late = (each for each in archived if _is_meant(each, choice, begin))
    return with_archive(late, reader)


def _is_meant(stored: Stored, choice: Choice, begin: int) -> bool:
    if choice.begin_ns is not None and stored.at_ns < choice.begin_ns:
        return False
    if choice.begin is not None and stored.sequence < begin:
        return False
    return choice.takes(stored.stream, stored.subject)


async def _of_archive(source: RunSource, choice: Choice, wanted: Wanted) -> AsyncGenerator[Stored, None]:
    """Without the broker's store: what the archive holds."""
    streams = [stream for stream in choice.filters if stream in ARCHIVED]
    if not streams or wanted.archive is False:
        raise InputError(f"the broker's store of run '{source.run}' is gone; the archive holds {' and '.join(ARCHIVED)} alone")

    async def told(stream: str) -> AsyncGenerator[Stored, None]:
        for stored in archived_messages(source.run_dir / "archive", source.run, stream):
            if _is_meant(stored, choice, choice.begin or 0):
                yield stored

    found: deque[Stored] = deque(maxlen=wanted.last)
    async for stored in merged_by_time([told(stream) for stream in streams]):
        if wanted.last is None:
            yield stored
        else:
            found.append(stored)
    for stored in found:
        yield stored


# --- following ---


async def _followed(source: RunSource, bus: Bus, choice: Choice, begins: dict[str, int]) -> AsyncGenerator[Stored, None]:
    """What comes from the sequences in `begins` on, as it comes, across restarts of the broker, until the run is over."""
    coming: asyncio.Queue[Stored | BusError | None] = asyncio.Queue(QUEUE)

    async def read(stream: str) -> None:
        try:
            async with aclosing(bus.read(stream, subjects=choice.reading(stream), start_sequence=begins[stream])) as reader:
                async for stored in reader:
                    await coming.put(stored)
        except BusError as error:
            await coming.put(error)

    async def watch() -> None:
        while is_live(source.content):
            await bus.platform.sleep(WATCH_S)
        await bus.platform.sleep(SETTLE_S)
        await coming.put(None)

    tasks = [asyncio.create_task(read(stream), name=f"follow {stream}") for stream in choice.filters]
    tasks.append(asyncio.create_task(watch(), name="watch run"))
    try:
        while (told := await coming.get()) is not None:
            if isinstance(told, BusError):
                raise told
            yield told
        looking.note(f"run '{source.run}' is not live: nothing more comes")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say_commands(source: RunSource, choice: Choice, wanted: Wanted) -> None:
    """The same with NATS's own command, a line a filter."""
    begin = ["--all"]
    if choice.begin is not None:
        begin = ["--start-sequence", str(choice.begin)]
    elif choice.begin_ns is not None:
        begin = ["--since", f"{max(0.0, (SystemPlatform().now_ns() - choice.begin_ns) / 1e9):.0f}s"]
    elif wanted.follow and wanted.last is not None:
        begin = ["--new"]
    for stream, filters in choice.filters.items():
        name = broker_stream(source.run, stream)
        for each in filters:
            command = shlex.join(["nats", "--server", source.url, "sub", "--stream", name, *begin, each])
            click.secho(command, err=True, dim=True)
