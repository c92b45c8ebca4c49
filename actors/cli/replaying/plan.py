"""What PLAN tells of a run: its episodes, the answer keys of its tasks, and whether it is over."""

from contextlib import aclosing

import msgspec

from actors.runtime.run_source import RunSource
from actors.runtime.workspace import is_live
from schemas.events import AnswerKeyStored, EpisodeRequested, RunEnded
from schemas.records import AnswerKey


class Plan(msgspec.Struct):
    """What PLAN tells of a run."""

    requested: dict[str, None]
    """Episodes, in order."""
    keys: dict[str, AnswerKey]
    has_ended: bool
    """Whether the run is over and its actors are gone."""


async def read_plan(source: RunSource) -> Plan:
    """Fold PLAN; empty where the broker's store is gone."""
    plan = Plan({}, {}, has_ended=False)
    if source.bus is None:
        return plan
    async with aclosing(source.bus.read("plan", follow=False)) as reader:
        async for stored in reader:
            match stored.event:
                case EpisodeRequested() as request:
                    plan.requested[request.episode] = None
                case AnswerKeyStored() as stored_key:
                    plan.keys[stored_key.key.task] = stored_key.key
                case RunEnded():
                    plan.has_ended = not is_live(source.content)
                case _:
                    pass
    return plan
