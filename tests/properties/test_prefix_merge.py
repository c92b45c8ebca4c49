"""Prefix merging against its definition, on trees of pieces that no agent has to have made."""

from itertools import accumulate, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asearch.agents.episode import EpisodeStart, EpisodeState
from asearch.agents.packed import pack_ids, pack_logprobs
from asearch.agents.pieces import ROOT, Piece, path
from asearch.agents.segments import segment_paths, segments
from asearch.agents.settings import AgentSettings
from schemas.records import Segment, Version, VersionRun
from tests.properties.counts import examples

Shape = tuple[int, int, bool, int]
"""How far back the parent lies (0: the root), number of tokens, whether generated here, number of versions."""
shapes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans(), st.integers(1, 3)), min_size=1, max_size=14)


def tree(drawn: list[Shape]) -> tuple[Piece, ...]:
    """Pieces whose every token id says where it stands; the root is one shared prompt."""
    pieces = [Piece(ids=pack_ids([1, 2]), parent=ROOT, end=2, origin="prompt", turn=0, thinking=False)]
    for back, size, own, n_versions in drawn:
        at = len(pieces)
        parent = max(0, at - max(1, back))
        runs = [*list(accumulate([size // n_versions] * n_versions, initial=0))[:-1], size]
        versions = tuple(
            VersionRun(version=Version(lineage=1, step=step), start=a, end=b)
            for step, (a, b) in enumerate(pairwise(runs))
            if b > a
        )
        pieces.append(
            Piece(
                ids=pack_ids([100 * at + n for n in range(size)]),
                parent=parent,
                end=pieces[parent].end + size,
                origin="generated" if own else "tool",
                turn=at,
                thinking=False,
                own=own,
                logprobs=pack_logprobs([-1.0 - at - n / 10 for n in range(size)]) if own else b"",
                versions=versions if own else (),
            )
        )
    return tuple(pieces)


def merged(pieces: tuple[Piece, ...]) -> list[tuple[list[int], list[int]]]:
    """Path and own pieces of every segment: a generation extends the segment whose whole text it begins with."""
    found: list[tuple[list[int], list[int]]] = []
    for index, piece in enumerate(pieces):
        if not piece.own or not piece.ids:
            continue
        text = path(pieces, index)
        extended = [each for each in found if text[: len(each[0])] == each[0]]
        assert len(extended) <= 1
        if extended:
            extended[0][0][:] = text
            extended[0][1].append(index)
        else:
            found.append((text, [index]))
    return found


def values(segment: Segment, name: str, dtype: str) -> list[float]:
    return np.frombuffer(segment.columns[name].data, dtype).tolist()


@examples(150)
@given(shapes)
def test_segments_are_those_of_the_definition(drawn: list[Shape]) -> None:
    pieces = tree(drawn)
    paths = segment_paths(pieces)
    assert [(path(pieces, each.tip), each.own) for each in paths] == merged(pieces)
    assert all(each.parent is None or each.parent < number for number, each in enumerate(paths))


@examples(150)
@given(shapes)
def test_every_own_token_is_trained_once_with_its_own_logprob_and_version(drawn: list[Shape]) -> None:
    pieces = tree(drawn)
    start = EpisodeStart(episode="e", question="?", settings=AgentSettings())
    expected = {
        (100 * at + n): (np.float32(-1.0 - at - n / 10), next(run.version for run in piece.versions if run.start <= n < run.end))
        for at, piece in enumerate(pieces)
        if piece.own
        for n in range(len(piece.ids) // 4)
    }
    found: dict[int, tuple[object, Version]] = {}
    for segment in segments(EpisodeState(start=start, pieces=pieces, memory=0)):
        ids, mask, logprobs = (values(segment, *each) for each in (("ids", "<u4"), ("mask", "u1"), ("logprobs", "<f4")))
        trained = [at for at, one in enumerate(mask) if one]
        assert [at for run in segment.versions for at in range(run.start, run.end)] == trained
        assert segment.n_prompt == trained[0]
        assert all(logprobs[at] == 0 for at in range(len(ids)) if not mask[at])
        for run in segment.versions:
            for at in range(run.start, run.end):
                assert ids[at] not in found
                found[int(ids[at])] = (np.float32(logprobs[at]), run.version)
        neighbours = zip(segment.versions, segment.versions[1:], strict=False)
        assert all(a.version != b.version or a.end < b.start for a, b in neighbours)
        assert [run.start for run in segment.origins] == [0, *[run.end for run in segment.origins[:-1]]]
        assert segment.origins[-1].end == len(ids)
    assert found == expected
