"""An episode gone on with from the middle: what another policy, or another seed, would have done from one of its turns on.

Nothing here reads or writes a run: the facts before the turn are folded, and the agent drives on with whatever generates and
calls tools for it.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from asearch.agents.episode import (
    Agent,
    EpisodeStart,
    EpisodeState,
    FactError,
    GeneratedTokens,
    GenerateRequest,
    ToolCall,
    ToolReplied,
)
from asearch.agents.packed import n_tokens, pack_ids, pack_logprobs
from asearch.agents.recorded import fact_of
from asearch.engines.client import GeneratedChunk
from asearch.errors import EngineError, InputError
from asearch.rewards.grader import GradeRecord
from asearch.traces.record import EpisodeRecord
from schemas.events import TokensGenerated, ToolReturned
from schemas.records import ToolResult, Version, VersionRun

MAX_ASKS = 5
"""Asks in a row for a generation that an engine breaks off."""


class Engine(Protocol):
    """What generates."""

    def generate(self, asked: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        """The tokens after what is held, offsets from the first new one. Raises EngineError."""
        ...


class Tools(Protocol):
    """What calls tools."""

    async def call(self, asked: ToolCall) -> ToolResult:
        """The result of a call; a failure is a result, too."""
        ...


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A turn for people."""

    turn: int
    text: str
    n_tokens: int
    versions: list[str]
    """Of the weights that generated it, in order."""
    tool: str = ""
    argument: str = ""
    n_documents: int = 0
    error: str = ""


def folded(agent: Agent, start: EpisodeStart, record: EpisodeRecord, before_turn: int | None = None) -> EpisodeState:
    """The state in which a turn begins; without one, after all facts.

    Raises InputError where the episode does not come to that turn, or its facts cannot be followed.
    """
    state, _ = agent.begin(start)
    for fact in record.facts:
        if before_turn is not None and isinstance(fact, TokensGenerated) and fact.turn >= before_turn:
            return state
        result = record.result_of(fact) if isinstance(fact, ToolReturned) else None
        known = fact_of(fact, result)
        if isinstance(fact, ToolReturned) and known is None:
            raise InputError(f"the result of {fact.call} is gone, so episode {record.episode} cannot be followed any further")
        try:
            if known is not None:
                state, _ = agent.apply(state, known)
        except FactError as error:
            raise InputError(f"episode {record.episode} cannot be followed: {error}; `asearch replay` says more") from error
    if before_turn is not None and (state.finished is not None or state.n_turns < before_turn):
        raise InputError(f"episode {record.episode} has {state.n_turns} turns, numbered from 0: none is number {before_turn}")
    return state


async def go_on(agent: Agent, state: EpisodeState, engine: Engine, tools: Tools) -> EpisodeState:
    """Drive an episode on to its end. Raises EngineError."""
    n_asked, held = 0, (-1, -1)
    while state.finished is None:
        (asked,) = agent.pending(state)
        if isinstance(asked, GenerateRequest):
            n_asked = n_asked + 1 if held == (asked.turn, asked.n_held) else 1
            held = asked.turn, asked.n_held
            if n_asked > MAX_ASKS:
                raise EngineError(f"the engine broke {asked.id} off {MAX_ASKS} times in a row")
            state = await _generate(agent, state, asked, engine)
        elif isinstance(asked, ToolCall):
            state, _ = agent.apply(state, ToolReplied(call=asked.id, result=await tools.call(asked)))
        else:
            raise TypeError(f"an open episode asks for {type(asked).__name__}")
    return state


async def _generate(agent: Agent, state: EpisodeState, asked: GenerateRequest, engine: Engine) -> EpisodeState:
    async with aclosing(engine.generate(asked)) as chunks:
        async for chunk in chunks:
            try:
                state, _ = agent.apply(state, _fact(asked, chunk))
            except FactError as error:
                raise EngineError(f"the engine sent tokens that cannot be used: {error}") from error
    return state


def _fact(asked: GenerateRequest, chunk: GeneratedChunk) -> GeneratedTokens:
    runs = [
        VersionRun(version=_version(span.version), start=span.start - chunk.offset, end=span.end - chunk.offset)
        for span in chunk.versions
    ]
    return GeneratedTokens(
        request=asked.id,
        offset=asked.n_held + chunk.offset,
        ids=pack_ids(chunk.ids),
        logprobs=pack_logprobs(chunk.logprobs),
        versions=tuple(runs),
        finish=chunk.finish if chunk.finish in ("stop", "length", "abort") else None,
    )


def _version(text: str) -> Version:
    """The version that a server names; a server of other weights than a run's may call them what it likes."""
    try:
        return Version.parse(text)
    except ValueError:
        return Version(lineage=0, step=0)


def turns_of(state: EpisodeState, from_turn: int = 0) -> list[Turn]:
    """The complete turns of an episode from one on."""
    own = {piece.turn: piece for piece in state.pieces if piece.own}
    uses = {use.turn: use for use in state.tool_log}
    turns: list[Turn] = []
    for number, text in enumerate(state.generated):
        if number < from_turn or number not in own:
            continue
        fields: dict[str, Any] = {}
        if (use := uses.get(number)) is not None:
            fields = {"tool": use.tool, "argument": use.argument, "n_documents": use.n_documents, "error": use.error or ""}
        piece = own[number]
        versions = list(dict.fromkeys(str(run.version) for run in piece.versions))
        turns.append(Turn(turn=number, text=text, n_tokens=n_tokens(piece.ids), versions=versions, **fields))
    return turns


def grade_record(state: EpisodeState) -> GradeRecord:
    """What a grader reads of an episode that has ended."""
    answer = state.finished.answer if state.finished is not None else None
    n_generated = sum(n_tokens(piece.ids) for piece in state.pieces if piece.own)
    return GradeRecord(generations=list(state.generated), answer=answer, tool_log=list(state.tool_log), n_tokens=n_generated)
