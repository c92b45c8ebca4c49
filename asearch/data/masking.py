"""Taking generated tokens of a segment out of the loss."""

from collections.abc import Collection, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.records import Column, Segment, VersionRun


def without_generated(episode: Sequence[Segment], numbers: Collection[int]) -> list[Segment]:
    """The segments with mask 0 at the generated tokens of these numbers, counted from 0 over the whole episode.

    Every generated token is trained in exactly one segment, so the trained tokens of the segments in order are those of the
    generations in order.
    """
    kept: list[Segment] = []
    first = 0
    for segment in episode:
        trained = np.flatnonzero(_column(segment, "mask"))
        kept.append(without_tokens(segment, [int(trained[n - first]) for n in numbers if first <= n < first + len(trained)]))
        first += len(trained)
    return kept


def without_tokens(segment: Segment, positions: Collection[int]) -> Segment:
    """The segment with mask 0 at `positions`; `versions` still covers exactly the tokens whose mask is 1."""
    if not positions:
        return segment
    removed = set(positions)
    mask = _column(segment, "mask").copy()
    mask[list(removed)] = 0
    versions: list[VersionRun] = []
    for run in segment.versions:
        start = run.start
        for position in sorted(p for p in removed if run.start <= p < run.end):
            if position > start:
                versions.append(VersionRun(version=run.version, start=start, end=position))
            start = position + 1
        if start < run.end:
            versions.append(VersionRun(version=run.version, start=start, end=run.end))
    columns = segment.columns | {"mask": Column(dtype="u1", shape=(len(mask),), data=mask.tobytes())}
    return msgspec.structs.replace(segment, columns=columns, versions=versions)


def _column(segment: Segment, name: str) -> npt.NDArray[np.integer]:
    column = segment.columns[name]
    return np.frombuffer(column.data, dtype="<" + column.dtype)
