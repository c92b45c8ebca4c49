"""Sets of stream sequences as sorted, disjoint, closed intervals: small to store, exact to compare."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from schemas.records import Interval


class IntervalSet:
    """A set of integers. Adding and membership cost O(log n) searches over the n intervals."""

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for interval in sorted(intervals, key=lambda item: item.first):
            if interval.last < interval.first:
                raise ValueError(f"an interval ends before it begins: {interval}")
            if self._last and interval.first <= self._last[-1] + 1:
                self._last[-1] = max(self._last[-1], interval.last)
            else:
                self._first.append(interval.first)
                self._last.append(interval.last)

    def add(self, value: int) -> None:
        """Put `value` in; a second time changes nothing."""
        at = bisect_right(self._first, value) - 1
        if at >= 0 and value <= self._last[at]:
            return
        joins_left = at >= 0 and self._last[at] == value - 1
        joins_right = at + 1 < len(self._first) and self._first[at + 1] == value + 1
        if joins_left and joins_right:
            self._last[at] = self._last[at + 1]
            del self._first[at + 1], self._last[at + 1]
        elif joins_left:
            self._last[at] = value
        elif joins_right:
            self._first[at + 1] = value
        else:
            self._first.insert(at + 1, value)
            self._last.insert(at + 1, value)

    def __contains__(self, value: int) -> bool:
        at = bisect_right(self._first, value) - 1
        return at >= 0 and value <= self._last[at]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in zip(self._first, self._last, strict=True))

    def __iter__(self) -> Iterator[int]:
        for first, last in zip(self._first, self._last, strict=True):
            yield from range(first, last + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self.intervals() == other.intervals()

    __hash__ = None  # type: ignore[assignment]

    def after(self, value: int) -> list[Interval]:
        """The intervals of the members above `value`, in order."""
        at = bisect_right(self._last, value)
        return [
            Interval(first=max(first, value + 1), last=last)
            for first, last in zip(self._first[at:], self._last[at:], strict=True)
        ]

    def intervals(self) -> list[Interval]:
        """The intervals in order, for storage."""
        return [Interval(first=first, last=last) for first, last in zip(self._first, self._last, strict=True)]
