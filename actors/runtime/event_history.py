"""The messages of a run's streams in order, those that were archived and purged among them."""

import heapq
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from actors.runtime.archive import read_outcomes
from actors.runtime.bus import Bus, Stored
from actors.runtime.episode_lines import EpisodeLineError, decode_episode, episode_named
from schemas.archive import EPISODES, OUTCOMES
from schemas.codec import encode
from schemas.events import Event
from schemas.topology import subject

ARCHIVED = ("trace", "outcomes")
TAIL = 256
"""How far back the search for the last messages goes at first."""


class ArchivedMessage(Stored, frozen=True, gc=False):
    """A message from the archive. `at_ns` is its writer's clock; `sequence` is 0 where older code archived it."""


def archived_messages(folder: Path, run: str, stream: str) -> Iterator[ArchivedMessage]:
    """What the archive holds of a stream, in the order of its sequences. `folder` need not exist."""
    if stream == "outcomes":
        for line in read_outcomes(folder / OUTCOMES):
            if line.outcome is not None:
                yield _message(run, stream, line.sequence, line.outcome)
            else:
                yield ArchivedMessage(stream, "", line.sequence, line.data or b"", None, "no outcome, as it was archived")
    elif stream == "trace":
        yield from _facts(folder / EPISODES, run)


def _message(run: str, stream: str, sequence: int, event: Event) -> ArchivedMessage:
    episode: str = getattr(event, "episode", "")
    return ArchivedMessage(stream, subject(run, type(event), episode), sequence, encode(event), event, None, event.at_ns)


class _Head(msgspec.Struct, gc=False):
    """As much of a line as its place in the order needs."""

    sequences: list[int] = []
    outcome: "_At | None" = None


class _At(msgspec.Struct, gc=False):
    at_ns: int = 0


_heads = msgspec.json.Decoder(_Head)


def _first_sequence(line: bytes) -> int:
    try:
        return min(_heads.decode(line).sequences, default=0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EpisodeLineError(f"the line of episode '{episode_named(line)}' in the archive cannot be read: {error}") from error


def _facts(path: Path, run: str) -> Iterator[ArchivedMessage]:
    """The facts of all episodes in order. At most those of episodes that overlap are held at once.

    Facts that older code archived without their sequences come first, an episode after the other.
    """
    begins: list[tuple[int, int]] = []
    at = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    begins.append((_first_sequence(line), at))
                at += len(line)
    except FileNotFoundError:
        return
    begins.sort()
    held: list[tuple[int, int, ArchivedMessage]] = []
    with path.open("rb") as file:
        for first, place in begins:
            while held and held[0][0] < first:
                yield heapq.heappop(held)[2]
            file.seek(place)
            entry = decode_episode(file.readline())
            sequences = entry.sequences or [0] * len(entry.facts)
            for number, (sequence, fact) in enumerate(zip(sequences, entry.facts, strict=False)):
                if not sequence:
                    yield _message(run, "trace", 0, fact)
                else:
                    heapq.heappush(held, (sequence, place + number, _message(run, "trace", sequence, fact)))
    while held:
        yield heapq.heappop(held)[2]


async def is_purged(bus: Bus, stream: str) -> bool:
    """Whether messages of a stream were deleted from it."""
    info = await bus.stream_info(stream)
    return info.n_messages < info.last_sequence


async def with_archive(archived: Iterator[ArchivedMessage], stored: AsyncIterator[Stored]) -> AsyncGenerator[Stored, None]:
    """Both in the order of their sequences; what is in both comes once, as it is stored."""
    waiting = next(archived, None)
    early: set[str] = set()
    async for message in stored:
        while waiting is not None and waiting.sequence <= message.sequence:
            if waiting.sequence < message.sequence:
                if waiting.sequence == 0 and waiting.event is not None:
                    early.add(waiting.event.id)
                yield waiting
            waiting = next(archived, None)
        if message.event is None or message.event.id not in early:
            yield message
    while waiting is not None:
        yield waiting
        waiting = next(archived, None)


async def last_messages(
    bus: Bus, stream: str, filters: Sequence[str], n: int, takes: Callable[[str, str], bool] = lambda stream, subject: True
) -> list[Stored]:
    """The last `n` messages on the filters of which stream and subject are taken, found from the end of the stream backwards."""
    info = await bus.stream_info(stream)
    reach = max(n, TAIL)
    while True:
        begin = max(info.first_sequence, info.last_sequence - reach + 1)
        found: deque[Stored] = deque(maxlen=n)
        async with aclosing(bus.read(stream, subjects=filters, start_sequence=begin, follow=False)) as reader:
            async for stored in reader:
                if takes(stream, stored.subject):
                    found.append(stored)
        if len(found) == n or begin <= info.first_sequence:
            return list(found)
        reach *= 4


async def merged_by_time(streams: Sequence[AsyncGenerator[Stored, None]]) -> AsyncGenerator[Stored, None]:
    """The messages of several streams, each in its own order, the earliest first."""
    waiting: list[tuple[int, int, Stored]] = []
    for number, stream in enumerate(streams):
        if (first := await anext(stream, None)) is not None:
            waiting.append((first.at_ns, number, first))
    heapq.heapify(waiting)
    while waiting:
        _, number, message = waiting[0]
        yield message
        following = await anext(streams[number], None)
        if following is None:
            heapq.heappop(waiting)
        else:
            heapq.heapreplace(waiting, (following.at_ns, number, following))
