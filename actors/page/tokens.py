"""An episode token by token: what was sampled, what was trained, and how sure the policy was each time."""

import math
from typing import Any

from actors.page.answers import trained_episode
from actors.page.board import Board
from asearch.agents.packed import unpack_ids, unpack_logprobs
from asearch.agents.segments import segments
from asearch.models.tokenizer import Tokenizer
from asearch.traces.story import tell_all
from asearch.traces.trained_tokens import trained_logprobs
from schemas.records import Column, Segment


async def tokens(board: Board, name: str) -> dict[str, Any]:
    """The segments of an episode, columns as lists. Raises InputError for an episode that the run has not."""
    record = await board.source.record(name)
    teller = board.source.teller(record.request)
    tell_all(teller, record)
    loaded = board.source.agent()
    if teller.state is None or loaded is None:
        note = board.source.missing_model or teller.trouble or "no driver has it yet"
        return {"segments": [], "advantage": None, "note": note}
    row = board.rows.rows.get(name)
    trained = None if row is None else await trained_episode(board, row)
    columns = {} if trained is None else {each.segment: each.columns for each in trained[1].segments}
    note = ""
    if trained is None and row is not None and row.fate == "counted" and row.purpose == "train":
        note = "the trainer recorded no tokens of this episode"
    return {
        "segments": [_segment(each, loaded[1], columns.get(each.id)) for each in segments(teller.state)],
        "advantage": None if trained is None else trained[1].advantage,
        "note": note,
    }


def _segment(segment: Segment, tokenizer: Tokenizer, trained: dict[str, Column] | None) -> dict[str, Any]:
    ids = unpack_ids(segment.columns["ids"].data)
    mask = list(segment.columns["mask"].data)
    logprobs = unpack_logprobs(segment.columns["logprobs"].data).tolist()
    return {
        "id": segment.id,
        "n_prompt": segment.n_prompt,
        "first_turn": segment.first_turn,
        "last_turn": segment.last_turn,
        "parent": segment.parent,
        "tokens": [tokenizer.token_bytes(each).decode(errors="replace") for each in ids],
        "ids": ids,
        "mask": mask,
        "origins": [{"origin": run.origin, "start": run.start, "end": run.end} for run in segment.origins],
        "versions": [{"version": str(run.version), "start": run.start, "end": run.end} for run in segment.versions],
        "logprobs": [round(value, 5) if own else None for value, own in zip(logprobs, mask, strict=True)],
        "train_logprobs": None if trained is None else _train_logprobs(trained, len(ids)),
    }


def _train_logprobs(trained: dict[str, Column], n: int) -> list[float | None] | None:
    values = trained_logprobs(trained, n)
    return None if values is None else [None if math.isnan(value) else round(value, 5) for value in values.tolist()]
