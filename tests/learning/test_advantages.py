import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.errors import ConfigError
from asearch.learning.advantages import estimators, whiten

REWARDS = st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=8), min_size=1, max_size=6)


def test_grpo_is_centred_and_scaled_by_the_population_spread() -> None:
    assert estimators.get("grpo")([[1.0, 0.0], [3.0, 1.0, 1.0, 1.0]]) == [
        [1.0, -1.0],
        pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3]),
    ]


def test_grpo_mean_does_not_divide() -> None:
    assert estimators.get("grpo_mean")([[1.0, 0.0, 0.0, 0.0]]) == [[0.75, -0.25, -0.25, -0.25]]


def test_rloo_leaves_the_reward_itself_out_of_its_baseline() -> None:
    (found, alone) = estimators.get("rloo")([[1.0, 0.0, 0.5, 2.5], [3.0]])
    assert found == pytest.approx([1.0 - 3.0 / 3, 0.0 - 4.0 / 3, 0.5 - 3.5 / 3, 2.5 - 1.5 / 3])
    assert alone == [0.0]


def test_gae_starts_from_the_reward() -> None:
    assert estimators.get("gae")([[1.0, 0.0], [0.5]]) == [[1.0, 0.0], [0.5]]


@pytest.mark.parametrize("name", ["grpo", "grpo_mean", "rloo"])
@pytest.mark.parametrize("group", [[0.1] * 7, [0.0], [1e9] * 3])
def test_equal_rewards_give_exact_zeros(name: str, group: list[float]) -> None:
    assert estimators.get(name)([group]) == [[0.0] * len(group)]


@given(REWARDS)
def test_groups_do_not_see_each_other(rewards: list[list[float]]) -> None:
    for name in ("grpo", "grpo_mean", "rloo"):
        estimate = estimators.get(name)
        assert estimate(rewards) == [estimate([group])[0] for group in rewards]
        assert all(abs(math.fsum(group)) < 1e-6 for group in estimate(rewards))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grpo_mean'"):
        estimators.get("grpo_meen")


def test_whitening_weighs_episodes_by_their_tokens() -> None:
    white = whiten([[1.0, 0.0], [2.0]], [[3, 1], [4]])
    flat = [
        a
        for group, counts in zip(white, [[3, 1], [4]], strict=True)
        for a, n in zip(group, counts, strict=True)
        for _ in range(n)
    ]
    assert statistics.fmean(flat) == pytest.approx(0.0, abs=1e-12)
    assert statistics.pstdev(flat) == pytest.approx(1.0)
    assert whiten([[0.0, 0.0]], [[3, 4]]) == [[0.0, 0.0]]
    assert whiten([[1.0]], [[0]]) == [[1.0]]
