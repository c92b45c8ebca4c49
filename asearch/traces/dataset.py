"""Trajectories as training data of other programs: chat messages, tokens with loss masks, preference pairs.

Messages have OpenAI's shape. What tools returned stands in messages of role `tool`, as text that the policy saw: whatever it
says, it is data. `train` marks what the policy wrote itself; everything else is context.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from asearch.agents.episode import EpisodeState
from asearch.agents.packed import unpack_ids
from asearch.agents.pieces import Piece
from asearch.traces.rows import EpisodeRow
from asearch.traces.turns import Decode, FoldedEpisode, Turn
from schemas.records import Segment

FORMATS = ("sft", "rft", "dpo")
IGNORED = -100
"""The label of a token that is not trained, as torch's and transformers' losses have it."""
Message = dict[str, Any]
Row = dict[str, Any]
_ARGUMENTS = {"search": "query", "access": "url"}


# --- which episodes ---------------------------------------------------------------------------------------------------


def by_task(rows: Iterable[EpisodeRow], *, correct_only: bool) -> dict[str, list[EpisodeRow]]:
    """Graded episodes by task: the highest reward first, of equals the shorter one, then by name."""
    found: dict[str, list[EpisodeRow]] = {}
    for row in rows:
        if row.reward is not None and (row.correct or not correct_only):
            found.setdefault(row.task, []).append(row)
    return {task: sorted(each, key=_best_first) for task, each in found.items()}


def pairs(
    rows: Iterable[EpisodeRow], min_margin: float, min_reward: float | None = None
) -> dict[str, list[tuple[EpisodeRow, EpisodeRow]]]:
    """Pairs of one group by task, the widest margin first: the best with the worst, the next best with the next worst, and so on.

    `min_reward` bounds the better one. An episode is in one pair at most.
    """
    groups: dict[str, list[EpisodeRow]] = {}
    for row in rows:
        if row.reward is not None:
            groups.setdefault(row.group, []).append(row)
    found: dict[str, list[tuple[EpisodeRow, EpisodeRow]]] = {}
    for members in groups.values():
        ranked = sorted(members, key=_best_first)
        for better, worse in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
            wide = margin(better, worse) > 0 and margin(better, worse) >= min_margin
            if wide and (min_reward is None or (better.reward or 0.0) >= min_reward):
                found.setdefault(better.task, []).append((better, worse))
    return {task: sorted(each, key=lambda pair: -margin(*pair)) for task, each in found.items()}


def margin(better: EpisodeRow, worse: EpisodeRow) -> float:
    """Difference of the rewards of two graded episodes."""
    return (better.reward or 0.0) - (worse.reward or 0.0)


def _best_first(row: EpisodeRow) -> tuple[float, int, str]:
    return -(row.reward or 0.0), row.n_tokens, row.episode


# --- an episode as messages -------------------------------------------------------------------------------------------


def messages_of(folded: FoldedEpisode, decode: Decode) -> list[Message]:
    """The messages of an episode in order of time. Raises ValueError for one that could not be folded.

    A tool text appears once, as it was first shown; that memory shortens it later is a matter of the agent. An assistant's
    message begins with `<think>` where the prompt had opened a thought for it.
    """
    state = folded.state
    if state is None:
        raise ValueError(folded.trouble)
    turns = {turn.turn: turn for turn in folded.turns}
    found = _opening(state)
    called: str | None = None
    for index, piece in enumerate(state.pieces):
        if piece.own:
            message = _assistant(state, piece, turns.get(piece.turn), decode)
            called = message["tool_calls"][0]["id"] if "tool_calls" in message else called
            found.append(message)
        elif piece.origin == "tool" and not _is_shortened(state.pieces, index):
            found.append(_tool(_text(piece, decode).strip(), called))
        elif piece.origin == "forced":
            found.append({"role": "assistant", "content": _text(piece, decode), "train": False})
    return found


def _opening(state: EpisodeState) -> list[Message]:
    instruction = state.start.settings.instruction.strip()
    system: list[Message] = [{"role": "system", "content": instruction, "train": False}] if instruction else []
    return [*system, {"role": "user", "content": state.start.question, "train": False}]


def _assistant(state: EpisodeState, piece: Piece, turn: Turn | None, decode: Decode) -> Message:
    before = state.pieces[piece.parent]
    opened = "<think>" if before.thinking and before.origin != "generated" else ""
    message: Message = {"role": "assistant", "content": opened + _text(piece, decode), "train": True}
    if turn is not None and turn.tool:
        arguments = json.dumps({_ARGUMENTS.get(turn.tool, "argument"): turn.argument}, ensure_ascii=False)
        call = {"id": f"call-{turn.turn}", "type": "function", "function": {"name": turn.tool, "arguments": arguments}}
        message["tool_calls"] = [call]
    return message


def _tool(text: str, called: str | None) -> Message:
    content = text.removesuffix("<think>").strip()
    if called is None:
        # What the agent says about a malformed generation: nobody had called a tool.
        return {"role": "user", "content": content, "train": False}
    return {"role": "tool", "tool_call_id": called, "content": content, "train": False}


def _is_shortened(pieces: tuple[Piece, ...], index: int) -> bool:
    """Whether a tool text is what memory keeps of one that was shown before: the generation that read it is repeated after it."""
    return index + 1 < len(pieces) and pieces[index + 1].origin == "generated" and not pieces[index + 1].own


def _text(piece: Piece, decode: Decode) -> str:
    return decode(unpack_ids(piece.ids))


# --- rows -------------------------------------------------------------------------------------------------------------


def sft_row(run: str, row: EpisodeRow, messages: list[Message]) -> Row:
    """An episode as messages."""
    return {**_source(run, row), "messages": messages}


def token_rows(run: str, row: EpisodeRow, segments: Iterable[Segment]) -> list[Row]:
    """An episode as training sequences; columns of tokens are packed little-endian bytes."""
    found: list[Row] = []
    for segment in segments:
        ids, mask = segment.columns["ids"].data, segment.columns["mask"].data
        trained = np.frombuffer(mask, "u1") == 1
        labels = np.where(trained, np.frombuffer(ids, "<u4").astype("<i8"), IGNORED).astype("<i8")
        found.append(
            {**_source(run, row), "segment": segment.id, "input_ids": ids, "loss_mask": mask, "labels": labels.tobytes()}
        )
    return found


def dpo_row(run: str, better: EpisodeRow, worse: EpisodeRow, chosen: list[Message], rejected: list[Message]) -> Row:
    """A pair. Both begin with the same messages, which become the prompt."""
    n_prompt = next(number for number, message in enumerate(chosen) if message["role"] == "assistant")
    if chosen[:n_prompt] != rejected[:n_prompt]:
        raise ValueError(f"{better.episode} and {worse.episode} do not begin alike")
    return {
        "run": run,
        "task": better.task,
        "group": better.group,
        "prompt": chosen[:n_prompt],
        "chosen": chosen[n_prompt:],
        "rejected": rejected[n_prompt:],
        "chosen_episode": better.episode,
        "rejected_episode": worse.episode,
        "chosen_reward": better.reward,
        "rejected_reward": worse.reward,
        "margin": margin(better, worse),
    }


def _source(run: str, row: EpisodeRow) -> Row:
    return {"run": run, "episode": row.episode, "task": row.task, "reward": row.reward, "correct": row.correct}


_UNPACK: dict[str, Callable[[bytes], list[int]]] = {
    "input_ids": unpack_ids,
    "loss_mask": list,
    "labels": lambda data: np.frombuffer(data, "<i8").tolist(),
}


def as_json(row: Row) -> Row:
    """A row as it stands in JSON lines: packed columns as lists."""
    return {name: _UNPACK[name](value) if isinstance(value, bytes) else value for name, value in row.items()}


def as_parquet(row: Row) -> Row:
    """A row as Parquet holds it: every message with the same fields, tool calls as JSON text."""
    return {name: [_flat(each) for each in value] if name in _MESSAGES else value for name, value in row.items()}


_MESSAGES = ("messages", "prompt", "chosen", "rejected")


def _flat(message: Message) -> Message:
    calls = message.get("tool_calls")
    return {
        "role": message["role"],
        "content": message["content"],
        "train": message["train"],
        "tool_call_id": message.get("tool_call_id"),
        "tool_calls": None if calls is None else json.dumps(calls, ensure_ascii=False),
    }
