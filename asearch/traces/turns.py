"""The turns of an episode: what was generated, what was asked of a tool, what came back, how long it took.

From the facts alone a turn's text is known where the episode finished; with the run's agent also what kind of call it was, how
long its prompt was and, where facts are all there, the state that training sequences are cut from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from asearch.agents.episode import Agent, EpisodeStart, EpisodeState, FactError, OpenCall
from asearch.agents.packed import unpack_ids
from asearch.agents.recorded import fact_of
from asearch.errors import AsearchError
from asearch.traces.record import EpisodeRecord
from schemas.events import TokensGenerated, ToolRequested, ToolReturned
from schemas.records import Document, VersionRun

KINDS = ("act", "read", "answer")
Decode = Callable[[list[int]], str]
_TAGGED = re.compile(r"<(search|access|answer)>.*?</\1>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|search|access|answer)>")


class Turn(msgspec.Struct, kw_only=True):
    """One generation, and the tool call that it made."""

    turn: int
    kind: str = ""
    """One of KINDS: it acts, it reads a tool text, or it is the forced answer."""
    n_prompt: int | None = None
    """Tokens of its prompt; None where the agent could not be folded."""
    ids: list[int] = []
    """Generated tokens."""
    text: str | None = None
    """Their text; None where the episode has not finished and no tokenizer is there."""
    versions: list[VersionRun] = []
    engine: str = ""
    """The engine that generated its last tokens."""
    finish: str = ""
    n_asked: int = 1
    elapsed_s: float = 0.0
    """From the engine's acceptance of the last request to its last token."""
    at_ns: int = 0
    """When its last tokens were recorded."""
    tool: str = ""
    argument: str = ""
    asked_ns: int = 0
    returned_ns: int = 0
    """When the result of the call was recorded; 0 where there is none."""
    documents: list[Document] = []
    error: str = ""
    """As in `ToolResult`, or `payload_missing`."""
    tool_s: float = 0.0

    @property
    def thought(self) -> str:
        """What it generated besides tags and what stands in them."""
        return thought_of(self.text or "")

    @property
    def was_served(self) -> bool:
        """Whether the tool returned at least one document."""
        return bool(self.documents) and not self.error


def thought_of(text: str) -> str:
    """A generated text without its actions and without tags; an action that is not closed is part of it."""
    return " ".join(_TAG.sub(" ", _TAGGED.sub(" ", text)).split())


@dataclass(frozen=True)
class FoldedEpisode:
    """An episode's turns, and its state after the last fact; None, with the reason, where it cannot be folded."""

    turns: list[Turn]
    state: EpisodeState | None
    trouble: str = ""


def turns_of(record: EpisodeRecord, decode: Decode | None = None) -> list[Turn]:
    """The turns as the facts tell them. Kinds are inferred: a turn that calls a tool acts, and so does the last one."""
    turns = _collected(record)
    _put_texts(turns, record, decode)
    finished = record.finished
    for turn in turns:
        is_last = finished is not None and turn is turns[-1]
        forced = is_last and finished is not None and finished.status == "forced"
        turn.kind = "answer" if forced else "act" if turn.tool or is_last else "read"
    return turns


def folded(record: EpisodeRecord, agent: Agent, start: EpisodeStart, decode: Decode) -> FoldedEpisode:
    """The turns with what only the agent knows, and the state after the last fact."""
    turns = turns_of(record, decode)
    by_number = {turn.turn: turn for turn in turns}
    try:
        state, _ = agent.begin(start)
        for event in record.facts:
            fact = fact_of(event, record.result_of(event) if isinstance(event, ToolReturned) else None)
            if fact is None:
                if isinstance(event, ToolReturned):
                    raise FactError(f"the result of {event.call} is gone")
                continue
            if isinstance(event, TokensGenerated) and state.call is not None and event.turn in by_number:
                _describe(by_number[event.turn], state, state.call)
            state, _ = agent.apply(state, fact)
    except AsearchError as error:
        return FoldedEpisode(turns, None, str(error))
    return FoldedEpisode(turns, state)


def _describe(turn: Turn, state: EpisodeState, call: OpenCall) -> None:
    turn.kind = call.kind
    turn.n_prompt = state.pieces[call.tip].end


def _collected(record: EpisodeRecord) -> list[Turn]:
    turns: dict[int, Turn] = {}
    requests: dict[int, str] = {}
    for fact in record.facts:
        if not isinstance(fact, TokensGenerated | ToolRequested | ToolReturned):
            continue
        turn = turns.get(fact.turn)
        if turn is None:
            turn = turns[fact.turn] = Turn(turn=fact.turn)
        match fact:
            case TokensGenerated():
                if requests.setdefault(fact.turn, fact.request) == fact.request:
                    _take_tokens(turn, fact)
            case ToolRequested():
                turn.tool, turn.argument, turn.asked_ns = fact.tool, fact.argument, fact.at_ns
            case ToolReturned():
                _take_result(turn, record, fact)
    return [turns[number] for number in sorted(turns)]


def _take_tokens(turn: Turn, fact: TokensGenerated) -> None:
    column = fact.columns.get("ids")
    turn.ids = [*turn.ids[: fact.offset], *(unpack_ids(column.data) if column is not None else [])]
    turn.versions = [*turn.versions, *(_moved(run, fact.offset) for run in fact.versions)]
    turn.engine = fact.engine
    turn.finish = fact.finish or ""
    turn.n_asked = max(turn.n_asked, fact.n_asked)
    turn.elapsed_s = fact.elapsed_ns / 1e9
    turn.at_ns = fact.at_ns


def _moved(run: VersionRun, offset: int) -> VersionRun:
    return run if offset == 0 else VersionRun(version=run.version, start=run.start + offset, end=run.end + offset)


def _take_result(turn: Turn, record: EpisodeRecord, fact: ToolReturned) -> None:
    result = record.result_of(fact)
    turn.returned_ns = fact.at_ns
    if result is None:
        turn.error = "payload_missing"
        return
    turn.documents, turn.error, turn.tool_s = result.documents, result.error or "", result.elapsed_ns / 1e9


def _put_texts(turns: list[Turn], record: EpisodeRecord, decode: Decode | None) -> None:
    generated = record.generated
    for turn in turns:
        if generated is not None and turn.turn < len(generated):
            turn.text = generated[turn.turn]
        elif decode is not None:
            turn.text = decode(turn.ids)
