"""What the page asks for once: a window of the list, an episode with its surroundings, its tokens, a group."""

import asyncio
from typing import Any

from actors.page.board import Board
from actors.page.numbers import number
from actors.runtime.episode_source import answer_key, tell
from asearch.agents.parse import last_tag
from asearch.errors import BusError, InputError
from asearch.learning.advantages import estimators
from asearch.traces.filters import filter_of
from asearch.traces.html import html_of
from asearch.traces.names import trace_id_of
from asearch.traces.rows import EpisodeRow
from asearch.traces.story import tell_all
from schemas.codec import MalformedError, decode_step_tokens
from schemas.records import StepTokens, TrainedEpisode

MAX_WINDOW = 500
MAX_THOUGHT_CHARS = 400
MAX_MEMBERS = 64
TRAINED_S = 2.0
"""How long to wait for what an update recorded, where that is not archived yet."""


def window(board: Board, options: dict[str, str]) -> dict[str, Any]:
    """The rows that match, from `offset` on. Raises ConfigError for a filter that cannot be read."""
    offset, limit = (number(options.pop(name, ""), default) for name, default in (("offset", 0), ("limit", 100)))
    found = filter_of(options).select(board.rows)
    rows = found[offset : offset + min(limit, MAX_WINDOW)]
    return {
        "revision": board.rows.revision,
        "n_total": len(board.rows),
        "n_matching": len(found),
        "n_left_out": board.rows.n_left_out,
        "offset": offset,
        "rows": rows,
    }


async def episode(board: Board, name: str) -> dict[str, Any]:
    """An episode with its group, its neighbours in the list and its references. Raises InputError."""
    watched = await board.watch(name)
    row = board.rows.rows.get(name)
    names = list(board.rows.rows)
    place = names.index(name) if row is not None else -1
    trained = None if row is None else await trained_episode(board, row)
    return {
        "row": row,
        "items": watched.items,
        "trouble": watched.trouble,
        "key": None if row is None else await _key(board, row.task),
        "group": None if row is None else {"group": row.group, "members": _members(board, row.group)},
        "trained": None
        if trained is None
        else {"advantage": trained[1].advantage, "step": trained[0].step, "lineage": trained[0].lineage},
        "trace_id": trace_id_of(board.source.run, name),
        "previous": names[place - 1] if place > 0 else None,
        "next": names[place + 1] if 0 <= place < len(names) - 1 else None,
    }


def _members(board: Board, group: str) -> list[dict[str, Any]]:
    rows = [board.rows.rows[name] for name in board.rows.groups.get(group, ())]
    graded = [row for row in rows if row.reward is not None]
    estimate = estimators.get(board.source.content.settings.trainer.algorithm.advantage)
    (advantages,) = estimate([[row.reward or 0.0 for row in graded]]) if graded else ([],)
    by_name = {row.episode: round(value, 6) for row, value in zip(graded, advantages, strict=True)}
    return [
        {
            "episode": row.episode,
            "member": row.member,
            "stage": row.stage,
            "reward": row.reward,
            "advantage": by_name.get(row.episode) if row.purpose == "train" else None,
        }
        for row in rows
    ]


async def _key(board: Board, task: str) -> dict[str, Any] | None:
    key = await answer_key(board.source, task)
    return None if key is None else {"answers": key.answers, "aug_answers": key.aug_answers}


async def export(board: Board, name: str) -> str:
    """An episode as one HTML file. Raises InputError for one that the run has not."""
    row = board.rows.rows.get(name)
    if row is None:
        raise InputError(f"run '{board.source.run}' has no episode '{name}'")
    return html_of(await tell(board.source, row, await board.source.record(name)))


async def trained_episode(board: Board, row: EpisodeRow) -> tuple[StepTokens, TrainedEpisode] | None:
    """What the update that took the episode recorded of it, as far as that can be had soon."""
    step = board.view.report.journal.steps.get(row.step) if row.step is not None else None
    if step is None or step.tokens is None:
        return None
    try:
        async with asyncio.timeout(TRAINED_S):
            data = await board.source.blob(step.tokens)
        tokens = None if data is None else decode_step_tokens(data)
    except (BusError, TimeoutError, MalformedError):
        return None
    if tokens is None:
        return None
    found = next((each for each in tokens.episodes if each.episode == row.episode), None)
    return None if found is None else (tokens, found)


# --- a group ---


async def group(board: Board, name: str) -> dict[str, Any]:
    """The episodes of one task side by side. Raises InputError for a group that the run has not."""
    names = board.rows.groups.get(name)
    if not names:
        raise InputError(f"run '{board.source.run}' has no group '{name}'")
    first = board.rows.rows[names[0]]
    members = _members(board, name)
    return {
        "group": name,
        "task": first.task,
        "question": first.question,
        "key": await _key(board, first.task),
        "purpose": first.purpose,
        "progress": first.progress,
        "step": first.step,
        "fate": first.fate,
        "reason": first.reason,
        "members": [
            {**member, "row": board.rows.rows[member["episode"]], "turns": await _turns(board, member["episode"])}
            for member in members[:MAX_MEMBERS]
        ],
        "n_members": len(members),
    }


async def _turns(board: Board, name: str) -> list[dict[str, Any]]:
    """The turns of an episode in a line each."""
    try:
        record = await board.source.record(name)
    except (InputError, BusError):
        return []
    turns: dict[int, dict[str, Any]] = {}
    for item in tell_all(board.source.teller(record.request), record):
        if item["kind"] == "tokens":
            turn = turns.setdefault(item["turn"], {"turn": item["turn"], "text": "", "n_tokens": 0})
            turn["text"] = turn["text"][: item["text_from"]] + item["text"]
            turn["n_tokens"] += item["n"]
        elif item["kind"] in ("called", "returned") and item["turn"] in turns:
            keys = ("tool", "argument") if item["kind"] == "called" else ("error",)
            turns[item["turn"]].update({key: item[key] for key in keys})
            if item["kind"] == "returned":
                turns[item["turn"]]["n_documents"] = len(item["documents"])
    return [_shortened(turn) for turn in turns.values()]


def _shortened(turn: dict[str, Any]) -> dict[str, Any]:
    text: str = turn.pop("text")
    answer = last_tag(text, "answer")
    if "tool" not in turn and answer is not None:
        turn["tool"], turn["argument"] = "answer", answer
    return {**turn, "thought": text[:MAX_THOUGHT_CHARS]}
