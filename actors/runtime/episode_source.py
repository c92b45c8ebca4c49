"""Finding an episode of a run and telling it."""

import asyncio

import msgspec

from actors.runtime.run_source import RunSource
from asearch.errors import AsearchError
from asearch.models.tokenizer import Tokenizer
from asearch.traces.names import named_episode, trace_id_of
from asearch.traces.record import EpisodeRecord
from asearch.traces.rows import EpisodeRow, RowTable
from asearch.traces.told import TokenText, ToldEpisode, told
from schemas.events import AnswerKeyStored, EpisodeRequested
from schemas.records import AnswerKey
from schemas.topology import key_token

KEY_S = 2.0
"""How long to wait for references: an episode that is archived is told without the broker too."""


async def told_episode(source: RunSource, wanted: str) -> ToldEpisode:
    """The episode that was meant, told. Raises InputError, with the nearest names, where there is none or more than one."""
    table = await source.rows()
    name = named_episode(wanted, table.rows, source.run)
    record = await source.record(name)
    # An open episode is as far as its facts say.
    for number, fact in enumerate(record.facts, 1):
        table.fold("trace", number, fact)
    return await tell(source, _row(table, name, record.request), record)


async def tell(source: RunSource, row: EpisodeRow, record: EpisodeRecord) -> ToldEpisode:
    """An episode that was found, told with its references, its tokens, and what could not be told."""
    teller = source.teller(record.request)
    loaded = source.agent()
    token_text = None if loaded is None else _token_text(loaded[1])
    key = await answer_key(source, row.task)
    trace = trace_id_of(source.run, row.episode)
    episode = told(source.run, row, record, teller, key=key, token_text=token_text, trace_id=trace)
    notes = list(episode.notes)
    if source.missing_model:
        notes.append(f"the texts of prompts and tokens cannot be told: {source.missing_model}")
    return msgspec.structs.replace(episode, notes=notes)


def _token_text(tokenizer: Tokenizer) -> TokenText:
    return lambda token: tokenizer.token_bytes(token).decode(errors="replace")


def _row(table: RowTable, name: str, request: EpisodeRequested | None) -> EpisodeRow:
    row = table.rows.get(name)
    if row is None and request is not None:
        table.fold("plan", table.folded["plan"] + 1, request)
        row = table.rows[name]
    return row if row is not None else EpisodeRow(episode=name, group="", member=0, purpose="")


async def answer_key(source: RunSource, task: str) -> AnswerKey | None:
    """The references of a task, None where nobody knows them any more, or the broker does not say within KEY_S."""
    if source.bus is None or not task:
        return None
    try:
        async with asyncio.timeout(KEY_S):
            stored = await source.bus.get_last(AnswerKeyStored, key_token(task))
    except (AsearchError, TimeoutError):
        return None
    return stored.event.key if stored is not None and isinstance(stored.event, AnswerKeyStored) else None
