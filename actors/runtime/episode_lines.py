"""Lines of `episodes.jsonl`: written with a checksum for each fact, read back, and searched for bytes that have changed since.

A line is a JSON object whose members stand in the order of `_Line`. A checksum is over the JSON of a fact as it stands there, so
that it can be checked without knowing what the fact says.
"""

import re
from collections.abc import Iterable

import msgspec
import xxhash

from actors.runtime.archive import ArchiveError
from schemas.archive import ArchivedEpisode
from schemas.events import AnyOutcome, Event

_FACTS, _TAIL = b',"facts":[', b'],"sequences":['
_HEAD = re.compile(rb'\{"episode":("[^"\\]*"),"sequence":(\d+),"outcome":')
_ANY_NAME = re.compile(rb'"episode":"([^"\\]+)"')
_BETWEEN_FACTS = re.compile(rb'(?<=\}),(?=\{"type":")')
"""Nowhere else in a line: inside a string the quotes are escaped, and no fact holds a list of facts."""
_TYPE_AND_ID = re.compile(rb'\{"type":"([a-z_]+)"(?:,"id":"([^"\\]+)")?')


class EpisodeLineError(ArchiveError):
    """A line of the archive of episodes cannot be read."""


class _Line(msgspec.Struct):
    """An `ArchivedEpisode` whose facts and outcome are JSON. Both have the same members in the same order."""

    episode: str
    sequence: int
    outcome: msgspec.Raw
    facts: list[msgspec.Raw]
    sequences: list[int] | None = None
    checksums: list[str] | None = None


class _Named(msgspec.Struct):
    episode: str


class _Tail(msgspec.Struct):
    sequences: list[int]
    checksums: list[str]


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.json.Encoder()
_lines = msgspec.json.Decoder(_Line)
_tails = msgspec.json.Decoder(_Tail)
_episodes = msgspec.json.Decoder(ArchivedEpisode)


def encode_episode(sequence: int, outcome: AnyOutcome, facts: Iterable[tuple[int, Event]]) -> bytes:
    """The line of an episode. `sequence` is that of its outcome in OUTCOMES, those of the facts are of TRACE."""
    numbered = [(number, _encoder.encode(fact)) for number, fact in facts]
    end = _encoder.encode(outcome)
    line = _Line(
        episode=outcome.episode,
        sequence=sequence,
        outcome=msgspec.Raw(end),
        facts=[msgspec.Raw(data) for _, data in numbered],
        sequences=[number for number, _ in numbered],
        checksums=[*(xxhash.xxh3_64_hexdigest(data) for _, data in numbered), xxhash.xxh3_64_hexdigest(end)],
    )
    return _encoder.encode(line)


def decode_episode(line: bytes) -> ArchivedEpisode:
    """Read a line. Raises EpisodeLineError, which names the facts that cannot be read where the checksums tell.

    It looks at no checksum: bytes that have changed may still be JSON. `damaged` tells.
    """
    try:
        return _episodes.decode(line)
    except _UNREADABLE as error:
        found = ", ".join(damaged(line)) or "nothing in it has changed since it was written: newer code may have written it"
        raise EpisodeLineError(f"a line of the archive cannot be read: {error}; {found}") from error


def episode_named(line: bytes) -> str:
    """The episode whose line it is, from the first of its places that can be read; empty if none can."""
    found = _ANY_NAME.search(line)
    return found[1].decode(errors="replace") if found else ""


def damaged(line: bytes) -> list[str]:
    """Name the facts, and the outcome, whose bytes are not those that were written: position, and what is left of type and id.

    Empty for a line that is whole, and for one that older code wrote, without checksums. A line that is no JSON any more is
    named in part too; raises EpisodeLineError where it cannot even be told where its facts and checksums stand.
    """
    try:
        read = _lines.decode(line)
    except _UNREADABLE as error:
        found = _changed(_apart(line, error))
        if not found:
            raise EpisodeLineError(f"a line of the archive cannot be read: {error}") from error
        return found
    return [] if read.checksums is None and read.sequences is None else _changed(read)


def _changed(line: _Line) -> list[str]:
    sequences, checksums = line.sequences or [], line.checksums or []
    if len(checksums) != len(sequences) + 1:
        raise EpisodeLineError(f"a line of the archive has {len(checksums)} checksums for {len(sequences)} facts and an outcome")
    *of_facts, of_outcome = checksums
    found = _changed_facts([bytes(fact) for fact in line.facts], of_facts)
    outcome = bytes(line.outcome)
    if xxhash.xxh3_64_hexdigest(outcome) != of_outcome:
        found.append(f"the outcome{_name(outcome)}")
    elif msgspec.json.decode(outcome, type=_Named).episode != line.episode:
        found.append(f"the episode's name, which is {line.episode!r} now")
    return found


def _apart(line: bytes, error: Exception) -> _Line:
    """The parts of a line that is no JSON as a whole. Raises EpisodeLineError."""
    head, facts, tail = _HEAD.match(line), line.find(_FACTS), line.rfind(_TAIL)
    if head is None or not head.end() <= facts < tail:
        raise EpisodeLineError(f"a line of the archive cannot be read, and its parts cannot be told apart: {error}") from error
    inside = line[facts + len(_FACTS) : tail]
    try:
        rest = _tails.decode(b"{" + line[tail + 2 :])
        episode = msgspec.json.decode(head[1], type=str)
    except _UNREADABLE as again:
        raise EpisodeLineError(f"name and checksums of a line of the archive cannot be read: {again}") from again
    return _Line(
        episode=episode,
        sequence=int(head[2]),
        outcome=msgspec.Raw(line[head.end() : facts]),
        facts=[msgspec.Raw(fact) for fact in _BETWEEN_FACTS.split(inside) if inside],
        sequences=rest.sequences,
        checksums=rest.checksums,
    )


def _changed_facts(facts: list[bytes], checksums: list[str]) -> list[str]:
    """The facts that no part of the line is. Where bytes that separate two facts have changed, both are named."""
    digests = [xxhash.xxh3_64_hexdigest(fact) for fact in facts]
    if len(facts) == len(checksums):
        pairs = zip(facts, digests, checksums, strict=True)
        return [f"fact {n}{_name(fact)}" for n, (fact, digest, checksum) in enumerate(pairs) if digest != checksum]
    known, there = set(checksums), set(digests)
    strange = iter([fact for fact, digest in zip(facts, digests, strict=True) if digest not in known])
    return [f"fact {n}{_name(next(strange, b''))}" for n, checksum in enumerate(checksums) if checksum not in there] or [
        f"the number of facts, {len(facts)} for {len(checksums)} checksums"
    ]


def _name(data: bytes) -> str:
    """Type and id of the JSON of a fact or outcome, in brackets, as far as they can be read."""
    match = _TYPE_AND_ID.match(data)
    return f" ({' '.join(part.decode(errors='replace') for part in match.groups() if part)})" if match else ""
