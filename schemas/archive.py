"""The archive of a run: files of JSON lines in `archive/`, written by the recorder before it purges a stream.

`episodes.jsonl` holds an `ArchivedEpisode` a line, `outcomes.jsonl` an `ArchivedOutcome`, both in the order of OUTCOMES.
`blobs/HASH` holds the payloads that lie nowhere else: large tool results, generated texts and the tokens of updates
(`StepTokens`), as they were stored.
"""

import msgspec

from schemas.events import AnyOutcome, Event, TraceFact

EPISODES, OUTCOMES, BLOBS = "episodes.jsonl", "outcomes.jsonl", "blobs"


class ArchivedEpisode(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an episode and every fact of its TRACE, in order, those of replaced drivers included."""

    episode: str
    sequence: int
    """Of its outcome in OUTCOMES."""
    outcome: AnyOutcome
    facts: list[TraceFact]
    sequences: list[int] = []
    """Of each fact in TRACE; empty in archives that older code wrote."""
    checksums: list[str] = []
    """xxh3-64 hex of the JSON of each fact as it stands in this line, then of the outcome: a changed byte is noticed later."""


class ArchivedOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of OUTCOMES."""

    sequence: int
    outcome: AnyOutcome | None = None
    data: bytes | None = None
    """The message as it was, where it is no outcome."""


def archived_outcome(sequence: int, event: Event | None, data: bytes) -> ArchivedOutcome:
    """The line of a message; `event` is what it was read as."""
    if isinstance(event, AnyOutcome):
        return ArchivedOutcome(sequence=sequence, outcome=event)
    return ArchivedOutcome(sequence=sequence, data=data)


_decoder = msgspec.json.Decoder(ArchivedOutcome)


def decode_outcome(line: bytes) -> ArchivedOutcome:
    """A line of `outcomes.jsonl`. Raises msgspec.DecodeError."""
    return _decoder.decode(line)
