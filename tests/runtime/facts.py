"""Small facts for the bus tests."""

import asyncio
from collections.abc import Awaitable, Callable

from schemas import events
from schemas.records import Task


def call(episode: str, n: int, size: int = 8) -> events.ToolRequested:
    """A tool call: the n-th of its episode, `size` bytes of argument."""
    return events.ToolRequested(
        id=f"{episode}-call-{n}",
        episode=episode,
        call=str(n),
        turn=n,
        tool="search",
        argument="x" * size,
        task="task",
        member=0,
        reply_to="nobody",
    )


def dropped(episode: str, reason: str = "test") -> events.EpisodeDropped:
    """An outcome."""
    return events.EpisodeDropped(
        id=f"{episode}-{reason}",
        episode=episode,
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task="task",
        reason=reason,
    )


def requested(episode: str, n: int) -> events.EpisodeRequested:
    """The n-th request for an episode."""
    return events.EpisodeRequested(
        id=f"{episode}-request-{n}",
        episode=episode,
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task=Task(id="task", question="q" * 400),
        seed=0,
        progress=0,
        recipe_hash="h",
        attempt=n,
    )


def ended(n: int) -> events.RunEnded:
    """A fact of PLAN."""
    return events.RunEnded(id=f"end-{n}", run="r", reason=str(n))


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- what it waits for has no event
            await asyncio.sleep(0.01)


async def within(work: Awaitable[object], timeout_s: float = 30.0) -> object:
    """The result, with a deadline."""
    async with asyncio.timeout(timeout_s):
        return await work
