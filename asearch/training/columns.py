"""The columns of a segment as arrays. What no step can learn from is refused here. Torch-free."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from asearch.errors import TrainingError
from schemas.records import Segment


class Columns(NamedTuple):
    """The T tokens of a segment."""

    ids_T: npt.NDArray[np.int64]
    mask_T: npt.NDArray[np.bool_]
    """The tokens that are trained."""
    behaviour_T: npt.NDArray[np.float32]
    """Log-probabilities under the version that sampled them, finite where the mask is set; zeros where none are needed."""


def columns_of(segment: Segment, *, needs_behaviour: bool = True) -> Columns:
    """Read a segment's columns. Raises TrainingError if one is missing, of another type or length, or not finite."""
    ids_T = _column(segment, "ids", "u4").astype(np.int64)
    mask_T = _column(segment, "mask", "u1").astype(np.bool_)
    if mask_T.shape != ids_T.shape:
        raise TrainingError(f"segment {segment.id}: mask has shape {mask_T.shape}, ids {ids_T.shape}")
    if mask_T[:1].any():
        raise TrainingError(f"segment {segment.id}: its first token is marked as generated, but nothing precedes it")
    behaviour_T = np.zeros(len(ids_T), dtype=np.float32)
    if needs_behaviour:
        behaviour_T = _column(segment, "logprobs", "f4").astype(np.float32)
        if behaviour_T.shape != ids_T.shape or not np.isfinite(behaviour_T[mask_T]).all():
            raise TrainingError(f"segment {segment.id}: behaviour log-probabilities are missing or not finite")
    return Columns(ids_T, mask_T, behaviour_T)


def check_segment(segment: Segment) -> None:
    """Raises TrainingError if no step could learn from the segment, whatever its versions are."""
    mask_T = columns_of(segment).mask_T
    versioned_T = np.zeros_like(mask_T)
    for run in segment.versions:
        if run.end > len(mask_T) or run.start > run.end:
            raise TrainingError(f"version run [{run.start}, {run.end}) lies outside a segment of {len(mask_T)} tokens")
        versioned_T[run.start : run.end] = True
    if not np.array_equal(versioned_T, mask_T):
        raise TrainingError(f"segment {segment.id}: its versions do not cover exactly the tokens that are trained")


def _column(segment: Segment, name: str, dtype: str) -> npt.NDArray[np.generic]:
    column = segment.columns.get(name)
    if column is None or column.dtype != dtype:
        raise TrainingError(f"segment {segment.id} has no column {name} of type {dtype}")
    values = np.frombuffer(column.data, dtype="<" + dtype)
    if column.shape != values.shape:
        raise TrainingError(f"segment {segment.id}: column {name} has {values.shape[0]} values, its shape says {column.shape}")
    return values
