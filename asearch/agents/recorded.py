"""From the events of TRACE to the facts that an agent folds: the same for a driver that takes over, replay and audit.

Not every event under an episode's key counts. A driver that was presumed dead may still write one or two before it is refused,
and a broker that lost a tail gives the sequences out again, so that a conditional append of an old driver may succeed. Whoever
reads TRACE, or an episode of the archive, must therefore select with `valid_facts` first, and fold only what it returns.
"""

from collections.abc import Iterable
from typing import TypeGuard

from asearch.agents.episode import Agent, DeadlineNear, EpisodeStart, EpisodeState, Fact, GeneratedTokens, ToolReplied
from asearch.agents.settings import AgentSettings
from schemas.events import (
    DeadlineNeared,
    EpisodeRequested,
    EpisodeTaken,
    Event,
    HeldFact,
    TokensGenerated,
    ToolReturned,
    TraceFact,
)
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


class FactSelection:
    """Which facts of one episode's TRACE count, decided as they come, in order.

    An `EpisodeTaken` counts if its attempt is above those before it. Another fact counts if it comes from the driver and the
    attempt of the last one that counts, or names none. A repeated id counts once.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._holder: EpisodeTaken | None = None

    def takes(self, event: Event | None) -> TypeGuard[TraceFact]:
        """Whether the next event counts. None, for what could not be decoded, and events of other streams do not."""
        if not isinstance(event, TraceFact) or event.id in self._seen:
            return False
        if isinstance(event, EpisodeTaken):
            if self._holder is not None and event.attempt <= self._holder.attempt:
                return False
            self._holder = event
        elif not _is_from(self._holder, event):
            return False
        self._seen.add(event.id)
        return True


def valid_facts(events: Iterable[Event | None]) -> list[TraceFact]:
    """The facts that count of one episode's TRACE, in order. The selection of a prefix is a prefix of the selection."""
    selection = FactSelection()
    return [event for event in events if selection.takes(event)]


def _is_from(holder: EpisodeTaken | None, fact: HeldFact) -> bool:
    """Whether the holder wrote the fact, as far as the fact says."""
    if fact.attempt == -1:
        return True
    return holder is not None and fact.attempt == holder.attempt and fact.driver in ("", holder.driver)


def elapsed_ns(facts: Iterable[TraceFact]) -> int:
    """How much of its wall clock an episode has used up, from its valid facts.

    The time between one fact and the next, by the clock of the driver that wrote both; the time before an `EpisodeTaken` is
    left out, as nobody held the episode. A clock that was set back counts as no time, and a fact without a time is skipped.
    """
    total_ns, before_ns = 0, 0
    for fact in facts:
        if isinstance(fact, EpisodeTaken):
            before_ns = 0
        if fact.at_ns and before_ns:
            total_ns += max(0, fact.at_ns - before_ns)
        before_ns = fact.at_ns or before_ns
    return total_ns


def n_idle_takes(facts: Iterable[TraceFact]) -> int:
    """How often the episode was taken since it last got on: asking for a tool is no progress, its result is."""
    n_takes = 0
    for fact in facts:
        if isinstance(fact, EpisodeTaken):
            n_takes += 1
        elif isinstance(fact, TokensGenerated | ToolReturned | DeadlineNeared):
            n_takes = 0
    return n_takes


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
