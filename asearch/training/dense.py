"""Which sequences are padded to one length and attended to together on a CPU."""

from collections.abc import Sequence

FILL = 0.9
"""Shortest over longest sequence of a dense batch: at most a tenth of it is padding."""
DENSE_TOKENS = 8192
"""Most tokens in a dense batch, so that its keys and values stay in the processor's cache."""


def dense_batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of sequences that follow one another; best if lengths do not increase."""
    ranges: list[tuple[int, int]] = []
    first = 0
    while first < len(lengths):
        last, longest, shortest = first, lengths[first], lengths[first]
        while last < len(lengths):
            high, low = max(longest, lengths[last]), min(shortest, lengths[last])
            if low < FILL * high or (last > first and (last - first + 1) * high > DENSE_TOKENS):
                break
            last, longest, shortest = last + 1, high, low
        ranges.append((first, last))
        first = last
    return ranges
