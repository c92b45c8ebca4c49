"""`EpisodeRecord`: all that is recorded of one episode, wherever it was read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from asearch.agents.recorded import valid_facts
from schemas.codec import MalformedError, decode_generated, decode_result
from schemas.events import AnyOutcome, EpisodeFinished, EpisodeRequested, EpisodeTaken, Event, ToolReturned, TraceFact
from schemas.records import BlobRef, ToolResult


@dataclass(frozen=True)
class EpisodeRecord:
    """The facts that count, in order, with the outcome if there is one.

    `payloads` holds the bytes of the blobs that the facts refer to, by hash; one that is gone is missing.
    """

    episode: str
    request: EpisodeRequested | None
    facts: list[TraceFact]
    sequences: list[int]
    """Of each fact in TRACE; 0 where that is not known."""
    outcome: AnyOutcome | None = None
    payloads: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    damage: list[str] = field(default_factory=list[str])
    """Which archived facts are not as they were written; empty is as it must be."""
    positions: list[int] = field(default_factory=list[int])
    """Of each fact among all that are stored of the episode, those of replaced drivers included; empty if not known."""

    @property
    def finished(self) -> EpisodeFinished | None:
        """The end of the episode as its driver told it."""
        return next((fact for fact in reversed(self.facts) if isinstance(fact, EpisodeFinished)), None)

    @property
    def takes(self) -> list[EpisodeTaken]:
        """Every driver that held it, in order."""
        return [fact for fact in self.facts if isinstance(fact, EpisodeTaken)]

    def result_of(self, fact: ToolReturned) -> ToolResult | None:
        """The result of a call, None where its payload is gone or cannot be read."""
        if fact.result is not None or fact.blob is None:
            return fact.result
        data = self.payloads.get(fact.blob.hash)
        try:
            return None if data is None else decode_result(data)
        except MalformedError:
            return None

    @property
    def generated(self) -> list[str] | None:
        """The texts of all generations, None where the episode has not finished or its payload is gone."""
        finished = self.finished
        if finished is None or finished.generated_blob is None:
            return None if finished is None else finished.generated
        data = self.payloads.get(finished.generated_blob.hash)
        try:
            return None if data is None else decode_generated(data)
        except MalformedError:
            return None


def record_of(
    episode: str,
    events: list[Event],
    sequences: list[int],
    outcome: AnyOutcome | None = None,
    payloads: Mapping[str, bytes] | None = None,
    damage: list[str] | None = None,
) -> EpisodeRecord:
    """The record of what TRACE or the archive holds of an episode: facts of replaced drivers are left out."""
    facts = valid_facts(events)
    place = {id(event): (position, sequence) for position, (event, sequence) in enumerate(zip(events, sequences, strict=False))}
    places = [place.get(id(fact), (0, 0)) for fact in facts]
    taken = next((fact for fact in facts if isinstance(fact, EpisodeTaken)), None)
    return EpisodeRecord(
        episode=episode,
        request=taken.request if taken else None,
        facts=facts,
        sequences=[sequence for _, sequence in places],
        outcome=outcome,
        payloads=payloads or {},
        damage=damage or [],
        positions=[position for position, _ in places],
    )


def payloads_of(events: list[Event]) -> list[BlobRef]:
    """The payloads that facts refer to and that lie nowhere else; a trajectory can be folded from the facts."""
    refs: list[BlobRef | None] = []
    for event in events:
        if isinstance(event, ToolReturned):
            refs.append(event.blob)
        elif isinstance(event, EpisodeFinished):
            refs.append(event.generated_blob)
    return [ref for ref in refs if ref is not None]
