"""What an update recorded, laid over a segment: at its places, and nowhere where the record does not fit."""

import numpy as np
import pytest

from asearch.traces.trained_tokens import trained_logprobs
from schemas.records import Column


def columns(places: list[int], logprobs: list[float], dtype: str = "u4") -> dict[str, Column]:
    return {
        "positions": Column(dtype=dtype, shape=(len(places),), data=np.array(places, f"<{dtype}").tobytes()),
        "logprobs": Column(dtype="f4", shape=(len(logprobs),), data=np.array(logprobs, "<f4").tobytes()),
    }


def test_log_probabilities_lie_at_their_places() -> None:
    values = trained_logprobs(columns([1, 3], [-1.0, -2.0]), 4)
    assert values is not None
    assert np.array_equal(values, np.array([np.nan, -1.0, np.nan, -2.0], "<f4"), equal_nan=True)
    assert trained_logprobs(columns([], []), 0) is not None


@pytest.mark.parametrize(
    "strange",
    [
        columns([4], [-1.0]),
        columns([0], [-1.0, -2.0]),
        columns([0], [-1.0], "u2"),
        {},
        {"positions": columns([0], [-1.0])["positions"]},
    ],
)
def test_a_record_that_does_not_fit_is_no_record(strange: dict[str, Column]) -> None:
    assert trained_logprobs(strange, 4) is None
    assert trained_logprobs(columns([0], [-1.0]), 0) is None
