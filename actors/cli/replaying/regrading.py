"""A whole run graded again with another reward, from its archive and what only its streams hold."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from actors.cli.replaying.lines import ArchiveReader, lines_of
from actors.cli.replaying.plan import Plan, read_plan
from actors.cli.replaying.table import table_file
from actors.runtime.run_source import RunSource
from asearch.configuration.settings import Settings
from asearch.errors import GradingError, InputError
from asearch.learning.advantages import estimators
from asearch.traces.record import EpisodeRecord
from asearch.traces.regrading import Regrading, Summary, regrade
from asearch.traces.verdicts import Verdict
from schemas.archive import EPISODES
from schemas.events import EpisodeGraded
from schemas.records import Reward

RECORDS_AT_ONCE = 32
"""Episodes between two chances for the connection to the broker to say that it lives."""


async def regrade_run(source: RunSource, settings: Settings, out: Path | None, progress: Callable[[int], None]) -> Summary:
    """Grade every graded episode of a run by `settings.rewards`, and write a row of each to `out`.

    Raises InputError where answer keys cannot be read any more.
    """
    plan = await read_plan(source)
    if not plan.keys:
        raise InputError(f"the answer keys of run '{source.run}' are gone with the broker's store: nothing can be graded")
    advantages = source.content.settings.trainer.algorithm.advantage, settings.trainer.algorithm.advantage
    regrading = Regrading(*map(estimators.get, advantages))
    with table_file(out) as write:
        async with aclosing(_records(source, plan)) as records:
            n_done = 0
            async for record in records:
                if isinstance(record, Verdict):
                    regrading.refuse(str(record.differences[0]))
                elif record.outcome is not None:
                    write(regrading.take(record.outcome, _new_reward(record, plan, settings, regrading)))
                n_done += 1
                if n_done % RECORDS_AT_ONCE == 0:
                    progress(n_done)
                    await asyncio.sleep(0)
        write(regrading.finish())
    return regrading.summary


def _new_reward(record: EpisodeRecord, plan: Plan, settings: Settings, regrading: Regrading) -> Reward | None:
    if not isinstance(record.outcome, EpisodeGraded):
        return None
    task = record.outcome.task
    try:
        if task not in plan.keys:
            raise GradingError(f"the answer key of task {task!r} is not in the plan")
        return regrade(record, plan.keys[task], settings.rewards.config())
    except GradingError as error:
        regrading.refuse(str(error))
        return None


async def _records(source: RunSource, plan: Plan) -> AsyncGenerator[EpisodeRecord | Verdict]:
    """Every episode that has an outcome, or what is wrong with its line."""
    reader = ArchiveReader(folder=source.run_dir / "archive")
    missing = dict(plan.requested)
    for number, line in lines_of(reader.folder / EPISODES):
        if not line.endswith(b"\n"):
            break
        found = reader.read(number, line)
        missing.pop(found.episode, None)
        yield found
    for episode in missing:
        if (record := await source.find(episode)) is not None:
            yield record
