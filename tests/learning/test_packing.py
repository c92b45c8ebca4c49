import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.errors import ConfigError
from asearch.learning.packing import pack


@given(st.lists(st.integers(1, 500), max_size=80), st.integers(1, 600))
def test_every_sequence_once_and_budgets_kept(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[i] for i in batch]
        assert sum(sizes) <= budget or len(batch) == 1
        assert sizes == sorted(sizes, reverse=True)
    assert batches == pack(lengths, budget)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(100, 400))
def test_first_fit_leaves_at_most_one_batch_half_empty(lengths: list[int], budget: int) -> None:
    loads = [sum(lengths[i] for i in batch) for batch in pack(lengths, budget)]
    assert sum(load * 2 <= budget for load in loads) <= 1


def test_a_long_sequence_has_a_batch_of_its_own() -> None:
    assert pack([3, 900, 4], 10) == [[1], [2, 0]]


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(ConfigError):
        pack([1], 0)
