"""From the events of TRACE to the facts that an agent folds: the same for a driver that takes over, replay and audit."""

from collections.abc import Iterable

from asearch.agents.episode import Agent, DeadlineNear, EpisodeStart, EpisodeState, Fact, GeneratedTokens, ToolReplied
from asearch.agents.settings import AgentSettings
from schemas.events import DeadlineNeared, EpisodeRequested, Event, TokensGenerated, ToolReturned
from schemas.records import ToolResult


def start_of(request: EpisodeRequested, settings: AgentSettings) -> EpisodeStart:
    """What the episode of a request begins from."""
    return EpisodeStart(
        episode=request.episode,
        question=request.task.question,
        settings=settings,
        seed=request.seed,
        purpose=request.purpose,
    )


def generated_fact(event: TokensGenerated) -> GeneratedTokens:
    """The fact that tokens were generated."""
    return GeneratedTokens(
        request=event.request,
        offset=event.offset,
        ids=event.columns["ids"].data,
        logprobs=event.columns["logprobs"].data,
        versions=tuple(event.versions),
        finish=event.finish if event.finish in ("stop", "length", "abort") else None,
    )


def fact_of(event: Event, stored_result: ToolResult | None = None) -> Fact | None:
    """The fact an event records, None for events that change no agent. `stored_result` is a tool result that lay in BLOBS."""
    match event:
        case TokensGenerated():
            return generated_fact(event)
        case ToolReturned():
            result = event.result if event.result is not None else stored_result
            return None if result is None else ToolReplied(call=event.call, result=result)
        case DeadlineNeared():
            return DeadlineNear()
        case _:
            return None


def fold(agent: Agent, start: EpisodeStart, facts: Iterable[Fact]) -> EpisodeState:
    """The state after these facts."""
    state, _ = agent.begin(start)
    for fact in facts:
        state, _ = agent.apply(state, fact)
    return state
