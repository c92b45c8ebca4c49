"""The story of an episode: its facts as a person reads them, one item a fact, in order, as they come.

Texts are what the policy really saw: the tokens of the prompt's pieces, folded by the episode's own agent. An item is made once
and never changed, so whoever has the items up to one fact gets the rest by telling on.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from asearch.agents.episode import Agent, EpisodeStart, EpisodeState, FactError
from asearch.agents.packed import n_tokens, unpack_ids
from asearch.agents.pieces import Piece, path
from asearch.agents.recorded import fact_of
from asearch.errors import AsearchError
from asearch.traces.record import EpisodeRecord
from schemas.events import (
    AnyOutcome,
    DeadlineNeared,
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeGraded,
    EpisodeTaken,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
    TraceFact,
)
from schemas.records import ToolResult, VersionRun

Decode = Callable[[list[int]], str]
Item = dict[str, Any]
"""A fact for people. `id` and `kind` are in every one; times are nanoseconds since the epoch."""


class StoryTeller:
    """Tells one episode. `agent` None (its model folder is gone) tells without the texts of prompts."""

    def __init__(self, agent: Agent | None, decode: Decode | None, start: EpisodeStart | None) -> None:
        self._agent = agent
        self._decode = decode
        self._state: EpisodeState | None = None
        self._ids: list[int] = []
        self._text = ""
        self._request = ""
        self.trouble = ""
        """Why the agent could not be folded on, if it could not."""
        if agent is not None and start is not None:
            try:
                self._state, _ = agent.begin(start)
            except AsearchError as error:
                self.trouble = str(error)

    @property
    def state(self) -> EpisodeState | None:
        """The agent's state after what was told; None where it cannot be folded."""
        return self._state

    def opening(self) -> Item | None:
        """The prompt that the episode begins with."""
        if self._state is None or self._decode is None:
            return None
        return {"id": "opening", "kind": "shown", "turn": 0, "pieces": [self._piece(0, self._state.pieces[0])]}

    def tell(self, fact: TraceFact, sequence: int, result: ToolResult | None = None) -> list[Item]:
        """The items of the next fact; `result` is that of a `ToolReturned`, wherever it lay."""
        items = [{"id": fact.id, "sequence": sequence, "at_ns": fact.at_ns, **self._item(fact, result)}]
        before = self._state
        self._fold(fact, result)
        if before is not None and self._state is not None:
            items.extend(self._shown(fact, before, self._state))
        return items

    def _item(self, fact: TraceFact, result: ToolResult | None) -> Item:
        match fact:
            case EpisodeTaken():
                return {"kind": "taken", "driver": fact.driver, "attempt": fact.attempt}
            case TokensGenerated():
                return self._tokens(fact)
            case ToolRequested():
                return {"kind": "called", "turn": fact.turn, "call": fact.call, "tool": fact.tool, "argument": fact.argument}
            case ToolReturned():
                return _returned(fact, result)
            case DeadlineNeared():
                return {"kind": "deadline"}
            case EpisodeFinished():
                return _finished(fact)

    def _tokens(self, fact: TokensGenerated) -> Item:
        if fact.request != self._request:
            self._request, self._ids, self._text = fact.request, [], ""
        column = fact.columns.get("ids")
        new = unpack_ids(column.data) if column is not None else []
        del self._ids[fact.offset :]
        self._ids.extend(new)
        whole = self._decode(self._ids) if self._decode is not None else ""
        # A character may have come in two parts: the text then changes from where the first part was.
        begin = next(
            (i for i, (a, b) in enumerate(zip(self._text, whole, strict=False)) if a != b), min(len(self._text), len(whole))
        )
        self._text = whole
        call = self._state.call if self._state is not None else None
        return {
            "kind": "tokens",
            "turn": fact.turn,
            "request": fact.request,
            "reads": call is not None and call.kind == "read",
            "forced": call is not None and call.kind == "answer",
            "n_prompt": self._state.pieces[call.tip].end if self._state is not None and call is not None else None,
            "offset": fact.offset,
            "n": len(new),
            "text_from": begin,
            "text": whole[begin:],
            "versions": [_span(run, fact.offset) for run in fact.versions],
            "finish": fact.finish,
            "engine": fact.engine,
            "elapsed_ns": fact.elapsed_ns,
            "n_asked": fact.n_asked,
        }

    def _fold(self, fact: TraceFact, result: ToolResult | None) -> None:
        known = None if self._state is None else fact_of(fact, result)
        if isinstance(fact, ToolReturned) and known is None and self._state is not None:
            self._stop(f"the result of {fact.call} is gone, so the texts after it cannot be told")
        if known is None or self._state is None or self._agent is None:
            return
        try:
            self._state, _ = self._agent.apply(self._state, known)
        except FactError as error:
            self._stop(str(error))

    def _stop(self, why: str) -> None:
        self._state, self.trouble = None, why

    # --- what the policy was shown ---

    def _shown(self, fact: TraceFact, before: EpisodeState, after: EpisodeState) -> list[Item]:
        """Pieces that came into a prompt by this fact, and tool texts that memory no longer has in full."""
        new = [(i, after.pieces[i]) for i in range(len(before.pieces), len(after.pieces)) if not after.pieces[i].own]
        kept = frozenset(path(after.pieces, after.memory)) | (
            frozenset(path(after.pieces, after.call.tip)) if after.call else frozenset()
        )
        were = frozenset(path(before.pieces, before.call.tip)) if before.call else frozenset(path(before.pieces, before.memory))
        shortened = sorted(i for i in were - kept if before.pieces[i].origin == "tool")
        texts = [self._piece(i, piece) for i, piece in new if piece.origin != "generated"]
        if not texts and not shortened:
            return []
        item: Item = {"id": f"{fact.id}-shown", "kind": "shown", "turn": after.n_turns, "pieces": texts, "shortened": shortened}
        return [item]

    def _piece(self, index: int, piece: Piece) -> Item:
        text = self._decode(unpack_ids(piece.ids)) if self._decode is not None else ""
        return {"piece": index, "origin": piece.origin, "n_tokens": n_tokens(piece.ids), "text": text}


def _span(run: VersionRun, offset: int) -> Item:
    return {"version": str(run.version), "start": run.start + offset, "end": run.end + offset}


def _returned(fact: ToolReturned, result: ToolResult | None) -> Item:
    documents = [] if result is None else [msgspec.to_builtins(document) for document in result.documents]
    return {
        "kind": "returned",
        "turn": fact.turn,
        "call": fact.call,
        "documents": [{"url": "", "title": "", "text": "", **document} for document in documents],
        "error": "payload_missing" if result is None else result.error,
        "message": "the result lay in BLOBS and is gone" if result is None else result.message,
        "elapsed_ns": 0 if result is None else result.elapsed_ns,
    }


def _finished(fact: EpisodeFinished) -> Item:
    return {
        "kind": "finished",
        "status": fact.status,
        "answer": fact.answer,
        "n_turns": fact.n_turns,
        "n_tokens": fact.n_tokens_generated,
        "elapsed_ns": fact.elapsed_ns,
    }


def outcome_item(outcome: AnyOutcome) -> Item:
    """How the episode ended, with the parts of its reward."""
    item: Item = {"id": outcome.id, "kind": "outcome", "at_ns": outcome.at_ns}
    match outcome:
        case EpisodeGraded():
            parts = [msgspec.structs.asdict(part) for part in outcome.reward.items]
            return {
                **item,
                "outcome": "graded",
                "reward": outcome.reward.value,
                "parts": parts,
                "correct": outcome.correct,
                "status": outcome.status,
                "answer": outcome.answer,
            }
        case EpisodeDropped() | EpisodeDead():
            how = "dropped" if isinstance(outcome, EpisodeDropped) else "dead"
            return {**item, "outcome": how, "reason": outcome.reason, "message": outcome.message}


def tell_all(teller: StoryTeller, record: EpisodeRecord) -> list[Item]:
    """Every item of an episode as it is recorded now."""
    opening = teller.opening()
    items = [] if opening is None else [opening]
    for fact, sequence in zip(record.facts, record.sequences, strict=True):
        result = record.result_of(fact) if isinstance(fact, ToolReturned) else None
        items.extend(teller.tell(fact, sequence, result))
    if record.outcome is not None:
        items.append(outcome_item(record.outcome))
    return items
