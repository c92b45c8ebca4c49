"""From the events of TRACE to an agent's start and facts: what the driver, replay and evaluation fold."""

from collections.abc import Iterable

from asearch.agents.episode import Agent, EpisodeStart, Fact, FactError, Finish, GeneratedTokens, Step, ToolReplied
from asearch.agents.settings import AgentSettings
from schemas.events import EpisodeRequested, TokensGenerated, ToolReturned
from schemas.records import Column, ToolResult

_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "abort"}


def start_of(request: EpisodeRequested, settings: AgentSettings) -> EpisodeStart:
    """The start of a requested episode."""
    return EpisodeStart(
        episode=request.episode,
        question=request.task.question,
        settings=settings,
        seed=request.seed,
        purpose=request.purpose,
    )


def tokens_fact(event: TokensGenerated) -> GeneratedTokens:
    """Raises FactError for columns that are missing or of another type, and for an unknown `finish`."""
    if event.finish is not None and event.finish not in _FINISHES:
        raise FactError(f"{event.request}: {event.finish!r} is not a way for a generation to finish.")
    return GeneratedTokens(
        request=event.request,
        offset=event.offset,
        ids=_data(event, "ids", "u4"),
        logprobs=_data(event, "logprobs", "f4"),
        versions=tuple(event.versions),
        finish=None if event.finish is None else _FINISHES[event.finish],
    )


def tool_fact(event: ToolReturned, result: ToolResult | None = None) -> ToolReplied:
    """`result` is the content of the event's blob where the result lies in one. Raises FactError where there is neither."""
    found = event.result or result
    if found is None:
        raise FactError(f"{event.call}: the result lies in a blob that was not given.")
    return ToolReplied(call=event.call, result=found)


def fold(agent: Agent, start: EpisodeStart, facts: Iterable[Fact]) -> Step:
    """The state after the facts, and what it waits for. Raises FactError where a fact does not fit."""
    state, _ = agent.begin(start)
    for fact in facts:
        state, _ = agent.apply(state, fact)
    return state, agent.pending(state)


def _data(event: TokensGenerated, name: str, dtype: str) -> bytes:
    column: Column | None = event.columns.get(name)
    if column is None or column.dtype != dtype:
        raise FactError(f"{event.request}: column {name} must be {dtype}, but is {column.dtype if column else 'missing'}.")
    return column.data
