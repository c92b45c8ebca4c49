"""From the tree of pieces to training sequences: prefix merging by structure.

Every generation extends the segment that it goes on from, if that segment ends where it begins; else (memory shortened what an
earlier call was shown in full) it opens a new one, in which all before it has mask 0. So every generated token is trained in
exactly one segment, and the text that the engine saw for a call is a prefix of that call's segment. Source of the rule:
ASearcher's merging of calls, which compares hashes of token prefixes; here a prefix is a path of the tree, so the merge costs
one step a piece and no token is looked at.
"""

import msgspec

from asearch.agents.episode import EpisodeState
from asearch.agents.packed import ID_BYTES, column, n_tokens
from asearch.agents.pieces import ROOT, Piece, path
from asearch.agents.received import joined
from schemas.records import OriginRun, Segment, VersionRun


class SegmentPath(msgspec.Struct):
    """A segment as a path of the tree: it ends with `tip`; `own` are its trained pieces, in order."""

    tip: int
    parent: int | None
    own: list[int]


def segment_paths(pieces: tuple[Piece, ...]) -> list[SegmentPath]:
    """Assign every own piece to one segment, in the order of generation. Time: one step a piece."""
    paths: list[SegmentPath] = []
    seen = [-1] * len(pieces)
    for index, piece in enumerate(pieces):
        if not (piece.own and piece.ids):
            continue
        walked: list[int] = []
        at = index
        while at != ROOT and seen[at] < 0:
            walked.append(at)
            at = pieces[at].parent
        before = seen[at] if at != ROOT else -1
        if before >= 0 and paths[before].tip == at:
            number = before
            paths[number].tip = index
            paths[number].own.append(index)
        else:
            number = len(paths)
            paths.append(SegmentPath(index, before if before >= 0 else None, [index]))
        for step in walked:
            seen[step] = number
    return paths


def segments(state: EpisodeState) -> list[Segment]:
    """The training sequences of an episode's complete generations; ids are `{episode}:s{n}`."""
    return [_segment(state, number, found) for number, found in enumerate(segment_paths(state.pieces))]


def _segment(state: EpisodeState, number: int, found: SegmentPath) -> Segment:
    own = frozenset(found.own)
    ids: list[bytes] = []
    mask: list[bytes] = []
    logprobs: list[bytes] = []
    versions: tuple[VersionRun, ...] = ()
    origins: list[OriginRun] = []
    position = 0
    for index in path(state.pieces, found.tip):
        piece = state.pieces[index]
        size = n_tokens(piece.ids)
        trained = index in own
        ids.append(piece.ids)
        mask.append((b"\1" if trained else b"\0") * size)
        logprobs.append(piece.logprobs if trained else bytes(size * ID_BYTES))
        if trained:
            versions = joined(versions, piece.versions, position)
        if size:
            _add_origin(origins, piece.origin, position, position + size)
        position += size
    first = state.pieces[found.own[0]]
    episode = state.start.episode
    return Segment(
        id=f"{episode}:s{number}",
        n_prompt=first.end - n_tokens(first.ids),
        first_turn=first.turn,
        last_turn=state.pieces[found.own[-1]].turn,
        columns={
            "ids": column("u4", b"".join(ids)),
            "mask": column("u1", b"".join(mask)),
            "logprobs": column("f4", b"".join(logprobs)),
        },
        versions=list(versions),
        origins=origins,
        parent=None if found.parent is None else f"{episode}:s{found.parent}",
    )


def _add_origin(origins: list[OriginRun], origin: str, start: int, end: int) -> None:
    if origins and origins[-1].origin == origin:
        start = origins.pop().start
    origins.append(OriginRun(origin=origin, start=start, end=end))
