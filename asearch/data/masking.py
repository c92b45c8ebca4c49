"""Taking generated tokens of a segment out of the loss."""

from collections.abc import Collection, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.records import Column, Segment, VersionRun


def trained_positions(segment: Segment, pattern: Sequence[int]) -> list[int]:
    """Where `pattern` (ids) begins in the segment with all of its tokens trained, in order."""
    ids, mask = _column(segment, "ids"), _column(segment, "mask")
    width = len(pattern)
    starts = np.flatnonzero(ids[: len(ids) - width + 1] == pattern[0]) if 0 < width <= len(ids) else []
    return [int(i) for i in starts if mask[i : i + width].all() and ids[i : i + width].tolist() == list(pattern)]


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
