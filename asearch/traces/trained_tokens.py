"""What an update recorded of the tokens of a segment, laid over the segment."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from schemas.records import Column


def trained_logprobs(columns: Mapping[str, Column], n_tokens: int) -> NDArray[np.float32] | None:
    """Log-probabilities (n_tokens,) of a `TrainedSegment`, NaN where no token was trained; None where it does not fit."""
    positions, logprobs = columns.get("positions"), columns.get("logprobs")
    if positions is None or logprobs is None or positions.dtype != "u4" or logprobs.dtype != "f4":
        return None
    places, known = np.frombuffer(positions.data, "<u4"), np.frombuffer(logprobs.data, "<f4")
    if len(places) != len(known) or (places >= n_tokens).any():
        return None
    values = np.full(n_tokens, np.nan, "<f4")
    values[places] = known
    return values
