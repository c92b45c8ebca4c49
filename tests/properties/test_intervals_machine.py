"""Interval sets against plain sets, stored and read back in between."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asearch.learning.intervals import IntervalSet
from schemas.records import Interval
from tests.properties.counts import examples


class IntervalMachine(RuleBasedStateMachine):
    """A set that a checkpoint stores."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.plain = IntervalSet(), set[int]()

    @rule(value=st.integers(1, 30))
    def add(self, value: int) -> None:
        self.held.add(value)
        self.plain.add(value)

    @rule(first=st.integers(1, 30), length=st.integers(0, 5))
    def join(self, first: int, length: int) -> None:
        self.held = IntervalSet([*self.held.intervals(), Interval(first=first, last=first + length)])
        self.plain |= set(range(first, first + length + 1))

    @rule()
    def store(self) -> None:
        self.held = IntervalSet(reversed(self.held.intervals()))

    @invariant()
    def is_the_same_set(self) -> None:
        assert list(self.held) == sorted(self.plain)
        assert len(self.held) == len(self.plain)
        assert [value in self.held for value in range(40)] == [value in self.plain for value in range(40)]
        starts = [value for value in self.plain if value - 1 not in self.plain]
        assert [each.first for each in self.held.intervals()] == sorted(starts)


TestIntervals = IntervalMachine.TestCase
TestIntervals.settings = examples(60)
