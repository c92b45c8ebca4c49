"""The spans that others hang from, as a pure function of what is recorded of an ended episode.

Whatever process died meanwhile, the same facts give the same spans with the same identities: nothing that was reported by an
engine or a tool is left without its parent, and reporting an episode again changes nothing for a receiver that knows spans by
their identity.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.runtime.tracing import PROVIDER, Attributes, Span, chat_context, episode_context, turn_context
from asearch.agents.recorded import valid_facts
from asearch.agents.settings import AgentSettings
from schemas.events import (
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeGraded,
    EpisodeTaken,
    Event,
    Outcome,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
    TraceFact,
)

MODEL = "policy"
COMPLETE = ("stop", "length")


@dataclass
class _Turn:
    """What the facts say of one turn. A turn has one generation, and the tool call that this asks for, if any."""

    number: int
    request: str
    start_ns: int
    driver: str
    chat_end_ns: int = 0
    end_ns: int = 0
    n_tokens: int = 0
    n_asked: int = 0
    finish: str | None = None
    engine: str = ""
    event_id: str = ""
    versions: list[str] = field(default_factory=list[str])
    tool: str = ""


def episode_spans(run: str, outcome: Outcome, facts: Iterable[Event | None], agent: AgentSettings) -> list[Span]:
    """The episode, its turns and their generations, parents first. `facts` is the episode's TRACE, in order."""
    valid = valid_facts(facts)
    takes = [fact for fact in valid if isinstance(fact, EpisodeTaken)]
    turns = _turns(valid, outcome)
    model = takes[-1].request.model if takes else MODEL
    spans = [_episode(run, outcome, takes, valid, turns, agent)]
    for turn in turns:
        spans += _turn(run, outcome, turn, model, agent)
    return spans


def late_spans(run: str, outcome: Outcome, fact: Event, known: set[int], agent: AgentSettings) -> list[Span]:
    """The turns that a fact shows, or leads to, which a driver has written after the outcome; `known` ones are left out.

    The outcome of an episode that is given up does not wait for its driver, which may not have heard of it.
    """
    match fact:
        case TokensGenerated():
            numbers = [fact.turn, fact.turn + 1] if fact.finish in COMPLETE else [fact.turn]
        case ToolReturned():
            numbers = [fact.turn + 1]
        case _:
            return []
    turns = [
        _Turn(number, f"{outcome.episode}:g{number}", fact.at_ns, fact.driver, fact.at_ns, fact.at_ns)
        for number in numbers
        if number not in known
    ]
    known.update(turn.number for turn in turns)
    return [span for turn in turns for span in _turn(run, outcome, turn, MODEL, agent)]


def turns_of(spans: Iterable[Span]) -> set[int]:
    """The numbers of the turns among spans."""
    return {number for span in spans if isinstance(number := span.attributes.get("asearch.turn"), int)}


def _turns(valid: list[TraceFact], outcome: Outcome) -> list[_Turn]:
    turns: dict[int, _Turn] = {}
    before_ns = 0
    driver = ""
    for fact in valid:
        match fact:
            case EpisodeTaken():
                driver = fact.driver
            case TokensGenerated():
                turn = turns.setdefault(fact.turn, _Turn(fact.turn, fact.request, before_ns or fact.at_ns, driver))
                _generated(turn, fact)
            case ToolRequested() | ToolReturned() if fact.turn in turns:
                turns[fact.turn].end_ns = max(turns[fact.turn].end_ns, fact.at_ns)
                turns[fact.turn].tool = fact.tool if isinstance(fact, ToolRequested) else turns[fact.turn].tool
            case _:
                pass
        before_ns = fact.at_ns or before_ns
    under_way = _under_way(valid, outcome, driver, before_ns)
    if under_way is not None:
        turns.setdefault(under_way.number, under_way)
    return list(turns.values())


def _generated(turn: _Turn, fact: TokensGenerated) -> None:
    turn.chat_end_ns = max(turn.chat_end_ns, fact.at_ns)
    turn.end_ns = max(turn.end_ns, fact.at_ns)
    turn.n_tokens += fact.columns["ids"].shape[0] if "ids" in fact.columns and fact.columns["ids"].shape else 0
    turn.n_asked = max(turn.n_asked, fact.n_asked)
    turn.finish = fact.finish or turn.finish
    turn.engine = fact.engine or turn.engine
    turn.event_id = fact.id
    for each in fact.versions:
        if str(each.version) not in turn.versions:
            turn.versions.append(str(each.version))


def _under_way(valid: list[TraceFact], outcome: Outcome, driver: str, since_ns: int) -> _Turn | None:
    """The turn whose first tokens an engine may have been generating when the episode was given up."""
    if not driver or any(isinstance(fact, EpisodeFinished) for fact in valid):
        return None
    number = 0
    for fact in valid:
        match fact:
            case TokensGenerated():
                number = fact.turn + (fact.finish in COMPLETE)
            case ToolRequested():
                # A tool is waited for, no generation.
                number = fact.turn
            case ToolReturned():
                number = fact.turn + 1
            case _:
                pass
    return _Turn(number, f"{outcome.episode}:g{number}", since_ns, driver, outcome.at_ns, outcome.at_ns)


def _episode(
    run: str,
    outcome: Outcome,
    takes: list[EpisodeTaken],
    valid: list[TraceFact],
    turns: list[_Turn],
    agent: AgentSettings,
) -> Span:
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.agent.name": agent.name,
        "gen_ai.conversation.id": outcome.episode,
        "gen_ai.usage.output_tokens": sum(turn.n_tokens for turn in turns),
        "asearch.run": run,
        "asearch.episode": outcome.episode,
        "asearch.group": outcome.group,
        "asearch.member": outcome.member,
        "asearch.purpose": outcome.purpose,
        "asearch.task": outcome.task,
        "asearch.event_id": outcome.id,
        "asearch.n_takes": len(takes),
    }
    starts = [take.request.at_ns for take in takes] + [fact.requested_ns for fact in valid if isinstance(fact, EpisodeFinished)]
    if takes:
        attributes["gen_ai.request.model"] = takes[-1].request.model
        attributes["asearch.progress"] = takes[-1].request.progress
    if outcome.label:
        attributes["asearch.label"] = outcome.label
    return Span(
        name=f"invoke_agent {agent.name}",
        context=episode_context(run, outcome.episode),
        start_ns=min(filter(None, starts), default=outcome.at_ns),
        end_ns=max([outcome.at_ns, *(fact.at_ns for fact in valid)]),
        attributes=attributes | _ended(outcome),
        error=_error(outcome),
        actor=takes[-1].driver if takes else None,
    )


def _ended(outcome: Outcome) -> Attributes:
    if isinstance(outcome, EpisodeGraded):
        attributes: Attributes = {
            "asearch.outcome": "graded",
            "asearch.status": outcome.status,
            "asearch.reward": outcome.reward.value,
            "asearch.correct": outcome.correct,
            "asearch.n_turns": outcome.n_turns,
            "asearch.n_searches": outcome.n_searches,
            "asearch.n_reads": outcome.n_reads,
        }
        return attributes | ({"asearch.policy_version": str(outcome.oldest)} if outcome.oldest else {})
    if isinstance(outcome, EpisodeDropped | EpisodeDead):
        kind = "dropped" if isinstance(outcome, EpisodeDropped) else "dead"
        return {"asearch.outcome": kind, "asearch.reason": outcome.reason, "error.type": outcome.reason}
    return {}


def _error(outcome: Outcome) -> str | None:
    return outcome.reason if isinstance(outcome, EpisodeDropped | EpisodeDead) else None


def _turn(run: str, outcome: Outcome, turn: _Turn, model: str, agent: AgentSettings) -> list[Span]:
    is_whole = turn.finish in COMPLETE
    context = turn_context(run, outcome.episode, turn.number)
    common: Attributes = {"gen_ai.conversation.id": outcome.episode, "asearch.turn": turn.number}
    attributes: Attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.request.temperature": agent.eval_temperature if outcome.purpose == "eval" else agent.temperature,
        "gen_ai.request.top_p": agent.top_p,
        "gen_ai.response.id": turn.request,
        "gen_ai.usage.output_tokens": turn.n_tokens,
        "asearch.n_asked": turn.n_asked,
        "asearch.policy_versions": turn.versions,
        "asearch.event_id": turn.event_id,
        "asearch.engine": turn.engine,
        **common,
    }
    if turn.versions:
        attributes["gen_ai.response.model"] = f"{model}@{turn.versions[-1]}"
    if turn.finish is not None:
        attributes["gen_ai.response.finish_reasons"] = [turn.finish]
    whole = Span(
        name=f"turn {turn.number}",
        context=context,
        parent=episode_context(run, outcome.episode),
        start_ns=turn.start_ns,
        end_ns=max(turn.start_ns, turn.end_ns),
        attributes=common | ({"gen_ai.tool.name": turn.tool} if turn.tool else {}),
        actor=turn.driver or None,
    )
    chat = Span(
        name=f"chat {model}",
        context=chat_context(run, outcome.episode, turn.request),
        parent=context,
        start_ns=turn.start_ns,
        end_ns=max(turn.start_ns, turn.chat_end_ns),
        kind="client",
        attributes=attributes,
        error=None if is_whole else _error(outcome),
        actor=turn.driver or None,
    )
    return [whole, chat]
