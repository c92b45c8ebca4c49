"""One episode of a run: read wherever it lies, with its answer key, and replayed."""

import asyncio

from actors.cli.replaying.lines import ArchiveReader, Replayer, task_of
from actors.runtime.run_source import RunSource
from asearch.errors import AsearchError, InputError
from asearch.traces.record import EpisodeRecord
from asearch.traces.verdicts import Verdict
from schemas.events import AnswerKeyStored
from schemas.records import AnswerKey
from schemas.topology import key_token


def replayer_of(source: RunSource, keys: dict[str, AnswerKey] | None = None, *, has_ended: bool = False) -> Replayer:
    """Whoever judges the episodes of a run. Raises InputError where the run's tokenizer is gone."""
    loaded = source.agent()
    if loaded is None:
        raise InputError(f"episodes of run '{source.run}' cannot be replayed without its tokenizer: {source.missing_model}")
    folder, settings = source.run_dir / "archive", source.content.settings
    return Replayer(folder=folder, has_ended=has_ended, agent=loaded[0], settings=settings, keys=keys or {})


async def replay_one(source: RunSource, episode: str) -> Verdict:
    """Replay an episode. Raises InputError where the run has none of that name, or no tokenizer."""
    replayer = replayer_of(source)
    found = await read_one(source, replayer, episode)
    if isinstance(found, Verdict):
        return found
    key = await answer_key(source, task_of(found))
    if key is not None:
        replayer.keys[key.task] = key
    return replayer.judge(found)


async def read_one(source: RunSource, reader: ArchiveReader, episode: str) -> EpisodeRecord | Verdict:
    """The record of an episode, from the archive if it is there; a verdict for an archived line that cannot be read."""
    await asyncio.to_thread(source.archive.refresh)
    if episode in source.archive:
        return reader.read(0, await asyncio.to_thread(source.archive.line, episode))
    return await source.record(episode)


async def answer_key(source: RunSource, task: str) -> AnswerKey | None:
    """The references of a task, as PLAN has them; None where the broker's store is gone, or has none."""
    if source.bus is None or not task:
        return None
    try:
        found = await source.bus.get_last(AnswerKeyStored, key_token(task))
    except AsearchError:
        return None
    return found.event.key if found is not None and isinstance(found.event, AnswerKeyStored) else None
