"""What must hold after every simulation, whatever went wrong in it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from actors.scheduler import SecondSchedulerError
from asearch.errors import (
    BusError,
    CheckpointError,
    EngineError,
    SecondTrainerError,
    StorageError,
    StreamRewoundError,
    TrainingError,
)
from schemas.codec import decode_step_tokens
from schemas.events import EpisodeTaken, Outcome, PolicyPublished, StepTrained, ToolRequested, ToolReturned
from schemas.topology import step_tokens_key

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

MAY_DIE_OF: dict[type[BaseException], tuple[str, ...]] = {
    StreamRewoundError: ("lost_tail",),
    BusError: ("outage", "flap", "slow_broker", "lost_acknowledgement"),
    TrainingError: ("rank_failure", "twin"),
    EngineError: ("weights_unreadable",),
    CheckpointError: ("disk_full",),
    StorageError: ("disk_full",),
    SecondTrainerError: ("twin", "slow_broker", "outage"),
    SecondSchedulerError: ("twin", "slow_broker", "outage"),
}
"""Errors that may end a life, each only where one of these faults has happened."""
MOST_LEFT = 400
"""Messages of TRACE that may be left at the end, besides half of all: those of the last purge interval."""


def findings(simulation: "Simulation") -> list[str]:
    """Everything that is wrong, one line each."""
    return [line for check in CHECKS for line in check(simulation)]


def _end(simulation: "Simulation") -> Iterator[str]:
    if simulation.ended.reason not in simulation.scenario.ends:
        yield f"the run ended with {simulation.ended.reason}: {simulation.ended.message}"


def _audited(simulation: "Simulation") -> Iterator[str]:
    yield from (f"audit: {line}" for line in simulation.problems.lines())


def _identities(simulation: "Simulation") -> Iterator[str]:
    for name, terms in {"all": simulation.terms["accounting"], **simulation.terms["accounting_by_purpose"]}.items():
        if terms["requested"] != terms["graded"] + terms["dropped"] + terms["dead"]:
            yield f"{name}: requested = graded + dropped + dead does not hold: {terms}"
        if terms["graded"] != terms["counted"] + terms["discarded"] + terms["queued"] or terms["in_flight"]:
            yield f"{name}: graded = counted + discarded + queued does not hold: {terms}"


def _staleness(simulation: "Simulation") -> Iterator[str]:
    run = simulation.scenario.settings.run
    if run.rule != "keep" and simulation.terms["staleness"]["max"] > run.eta:
        yield f"tokens were trained {simulation.terms['staleness']['max']} steps old; eta is {run.eta}"


def _outcomes(simulation: "Simulation") -> Iterator[str]:
    facts = simulation.journal.facts["outcomes"].values()
    counts = Counter(fact.episode for fact in facts if isinstance(fact, Outcome))
    yield from (f"episode {name} has {n} outcomes" for name, n in counts.items() if n > 1)


def _versions(simulation: "Simulation") -> Iterator[str]:
    facts = simulation.journal.facts["policy"].values()
    counts = Counter(str(fact.version) for fact in facts if isinstance(fact, PolicyPublished))
    yield from (f"version {name} was published {n} times" for name, n in counts.items() if n > 1)


def _calls(simulation: "Simulation") -> Iterator[str]:
    """No call is asked for, or recorded, again once its result is recorded."""
    returned: dict[str, set[str]] = defaultdict(set)
    newest: dict[str, int] = {}
    for fact in simulation.journal.facts["trace"].values():
        if isinstance(fact, EpisodeTaken):
            newest[fact.episode] = fact.attempt
        if not isinstance(fact, ToolRequested | ToolReturned) or fact.attempt not in (-1, newest.get(fact.episode, -1)):
            continue
        if fact.call in returned[fact.episode]:
            yield f"{type(fact).__name__} of call {fact.call}, whose result was recorded before"
        if isinstance(fact, ToolReturned):
            returned[fact.episode].add(fact.call)


class _Line(msgspec.Struct):
    episode: str
    sequence: int


def _archive(simulation: "Simulation") -> Iterator[str]:
    path = simulation.folder / "archive" / "episodes.jsonl"
    data = path.read_bytes() if path.is_file() else b""
    counts = Counter(msgspec.json.decode(line, type=_Line).episode for line in data.splitlines())
    yield from (f"episode {name} is {n} times in the archive" for name, n in counts.items() if n > 1)
    ended = {fact.episode for fact in simulation.journal.facts["outcomes"].values() if isinstance(fact, Outcome)}
    yield from (f"episode {name} ended, but is not in the archive" for name in sorted(ended - counts.keys()))
    yield from (f"episode {name} is in the archive, but has not ended" for name in sorted(counts.keys() - ended))


def _step_tokens(simulation: "Simulation") -> Iterator[str]:
    """What an update did is archived, is of that update, and lies in the broker no longer than it is not."""
    blobs = simulation.folder / "archive" / "blobs"
    said = [fact for fact in simulation.journal.facts["policy"].values() if isinstance(fact, StepTrained)]
    for fact in said:
        name = step_tokens_key(fact.model, fact.lineage, fact.step)
        if fact.tokens is None:
            if fact.n_tokens_trained and not any(simulation.troubles.counts[each] for each in ("outage", "flap", "slow_broker")):
                yield f"the tokens of {name} were not recorded"
            continue
        if not (blobs / fact.tokens.hash).is_file():
            yield f"the tokens of {name} are not in the archive"
            continue
        tokens = decode_step_tokens((blobs / fact.tokens.hash).read_bytes())
        if (tokens.lineage, tokens.step) != (fact.lineage, fact.step) or not tokens.episodes:
            yield f"the record of {name} is of {tokens.lineage}.{tokens.step} and {len(tokens.episodes)} episodes"


def _dead(simulation: "Simulation") -> Iterator[str]:
    for fact in simulation.journal.facts["dead"].values():
        yield f"in DEAD: {getattr(fact, 'subject', '')}: {getattr(fact, 'reason', '')}"


def _deaths(simulation: "Simulation") -> Iterator[str]:
    """Lives end of errors that they must end of, and only then."""
    happened = simulation.troubles.counts
    for name, error in simulation.deaths:
        for leaf in _leaves(error):
            faults = next((faults for kind, faults in MAY_DIE_OF.items() if isinstance(leaf, kind)), ())
            if not any(happened[fault] for fault in faults):
                yield f"{name} died of {type(leaf).__name__}: {str(leaf)[:300]}"
    yield from simulation.complaints


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _bounded(simulation: "Simulation") -> Iterator[str]:
    """Streams are purged, and no actor holds what is over."""
    left, total = len(simulation.broker.stream("sim", "trace").records), len(simulation.journal.facts["trace"])
    if left > MOST_LEFT + total // 2 and simulation.duration_s > 30:
        yield f"{left} messages are left in TRACE"
    for name, living in simulation.alive.items():
        for attribute in ("_held", "_episodes", "_results", "_chunks", "_facts"):
            held = getattr(living.actor, attribute, ())
            if held:
                yield f"{name} still holds {len(held)} in {attribute}"


CHECKS = (_end, _audited, _identities, _staleness, _outcomes, _versions, _calls, _archive, _step_tokens, _dead, _deaths, _bounded)
