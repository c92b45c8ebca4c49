"""Outcomes: the fields that they share with the request and the end of an episode, and how one is written."""

from typing import TypedDict

from actors.runtime.appends import append_past_malformed
from actors.runtime.bus import Bus
from asearch.errors import ConflictError
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeFinished, EpisodeRequested, Outcome
from schemas.records import Task


class Identity(TypedDict):
    """Which episode an outcome is of. The id is the same whoever writes the outcome: there is only one."""

    id: str
    at_ns: int
    episode: str
    group: str
    member: int
    members: int
    slot: int
    purpose: str
    task: str
    refill: int
    label: str


def identity(event: EpisodeRequested | EpisodeFinished, at_ns: int) -> Identity:
    """The shared fields, from the request or the end of the episode."""
    return Identity(
        id=f"outcome-{event.episode}",
        at_ns=at_ns,
        episode=event.episode,
        group=event.group,
        member=event.member,
        members=event.members,
        slot=event.slot,
        purpose=event.purpose,
        task=event.task.id if isinstance(event.task, Task) else event.task,
        refill=event.refill,
        label=event.label,
    )


def dropped(event: EpisodeRequested | EpisodeFinished, at_ns: int, reason: str, message: str = "") -> EpisodeDropped:
    """The outcome of an episode that ended for a reason outside the policy."""
    return EpisodeDropped(**identity(event, at_ns), reason=reason, message=message)


def dead(event: EpisodeRequested | EpisodeFinished, at_ns: int, reason: str, message: str = "") -> EpisodeDead:
    """The outcome of an episode that nobody can finish."""
    return EpisodeDead(**identity(event, at_ns), reason=reason, message=message)


async def append_outcome(bus: Bus, outcome: Outcome) -> bool:
    """Store the outcome of an episode; False if the episode has one, which stays. A malformed message is no outcome.

    Raises BusError when the broker refuses or stays away.
    """
    try:
        await append_past_malformed(bus, outcome, outcome.episode, expected=0)
    except ConflictError:
        return False
    return True
