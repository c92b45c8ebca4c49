"""The fields that the outcomes of an episode share with its request and its end."""

from typing import TypedDict

from schemas.events import EpisodeDead, EpisodeDropped, EpisodeFinished, EpisodeRequested
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
