from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from asearch.learning.intervals import IntervalSet
from schemas.records import Interval

values = st.lists(st.integers(1, 40), max_size=60)
pairs = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=12)


@given(values)
def test_an_interval_set_is_a_set(numbers: list[int]) -> None:
    held, plain = IntervalSet(), set[int]()
    for number in numbers:
        held.add(number)
        plain.add(number)
        assert len(held) == len(plain)
    assert list(held) == sorted(plain)
    assert [number in held for number in range(50)] == [number in plain for number in range(50)]


@given(values)
def test_intervals_are_sorted_disjoint_and_as_few_as_possible(numbers: list[int]) -> None:
    held = IntervalSet()
    for number in numbers:
        held.add(number)
    intervals = held.intervals()
    assert all(each.first <= each.last for each in intervals)
    assert all(left.last + 1 < right.first for left, right in pairwise(intervals))
    assert IntervalSet(intervals) == held


@given(pairs, st.randoms())
def test_the_order_and_overlap_of_given_intervals_do_not_matter(spans: list[tuple[int, int]], shuffler: object) -> None:
    intervals = [Interval(first=first, last=first + length) for first, length in spans]
    mixed = list(intervals)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    expected = {value for first, length in spans for value in range(first, first + length + 1)}
    assert IntervalSet(intervals) == IntervalSet(mixed)
    assert list(IntervalSet(mixed)) == sorted(expected)
