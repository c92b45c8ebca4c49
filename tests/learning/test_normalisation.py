import pytest

from asearch.errors import ConfigError
from asearch.learning.normalisation import normalisations

TOKENS = [4, 0, 2, 2]
EPISODES = [0, 0, 1, 1]
LOSSES = [1.0, 0.0, 2.0, 6.0]
"""Loss of every token, equal within a segment."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token", (4 * 1 + 2 * 2 + 2 * 6) / 8),
        ("sequence", (1 + 2 + 6) / 3),
        ("episode", (1 + 4) / 2),
        ("constant", (4 * 1 + 2 * 2 + 2 * 6) / (10 * 2)),
    ],
)
def test_means(name: str, expected: float) -> None:
    weights = normalisations.get(name)(TOKENS, EPISODES, 10)
    total = sum(n * loss * weight for n, loss, weight in zip(TOKENS, LOSSES, weights.by_segment, strict=True))
    assert total / weights.divisor == pytest.approx(expected)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'token'"):
        normalisations.get("tokens")
