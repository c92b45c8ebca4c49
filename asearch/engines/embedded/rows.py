"""Which row of the cache holds which sequence: reuse of prefixes, eviction, and keeping running rows together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from asearch.models.kv_cache import KvCache

_MIN_COPY = 16
"""Shorter common prefixes are computed again rather than copied."""
_MIN_WAIT = 32
"""A prompt waits for a running one if that saves it at least so many tokens."""
_MAX_LOSS = 0.25
"""Share of a kept sequence that a prompt may overwrite instead of copying its prefix."""
_DENSE = 0.6


class Rows:
    """Book-keeping of a `KvCache`. A row is *active* (a request runs in it) or *idle* (kept for reuse, or empty)."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._tokens_SP = np.zeros((cache.n_rows, cache.n_positions), dtype=np.int32)
        self._n_valid_S = np.zeros(cache.n_rows, dtype=np.int64)
        self._n_planned_S = np.zeros(cache.n_rows, dtype=np.int64)
        self._used_S = np.zeros(cache.n_rows, dtype=np.int64)
        self._active_S = np.zeros(cache.n_rows, dtype=np.bool_)
        self._clock = 0

    def acquire(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Takes a row for a sequence; returns it and how many of its tokens are already there (at least one is not).

        None asks to try again after the next step: a running prompt shares a long prefix that is not computed yet.
        The caller guarantees that a row is idle.
        """
        new = np.asarray(tokens, dtype=np.int32)
        source, matched = self._longest(new[:-1])
        n_valid = int(self._n_valid_S[source])
        if self._active_S[source] and matched >= n_valid + _MIN_WAIT:
            return None
        matched = min(matched, n_valid)
        if not self._active_S[source] and 0 < matched and n_valid - matched <= max(_MIN_COPY, _MAX_LOSS * n_valid):
            row = source
        else:
            row = self._victim()
            if row != source:
                matched = matched if matched >= _MIN_COPY else 0
                if matched:
                    self._cache.copy_prefix(source, row, matched)
        self._tokens_SP[row, matched : len(new)] = new[matched:]
        self._n_valid_S[row], self._n_planned_S[row] = matched, len(new)
        self._active_S[row] = True
        return row, matched

    def computed(self, row: int, n_tokens: int) -> None:
        """Says that keys and values of the first `n_tokens` tokens of the row's prompt are there."""
        self._n_valid_S[row] = n_tokens

    def release(self, row: int, tokens: Sequence[int], start: int) -> None:
        """Makes a row idle; it holds `start` tokens known before, then `tokens`."""
        end = start + len(tokens)
        self._tokens_SP[row, start:end] = tokens
        self._n_valid_S[row] = self._n_planned_S[row] = end
        self._active_S[row] = False
        self._clock += 1
        self._used_S[row] = self._clock

    def spoil(self, row: int) -> None:
        """Makes a row idle and empty, and wipes values that may not be finite."""
        self._cache.clear(row)
        self.release(row, [], 0)

    def flush(self) -> None:
        """Forgets everything; no row may be active."""
        if self._active_S.any():
            raise AssertionError("rows are flushed only when none is active")
        self._n_valid_S[:] = 0
        self._n_planned_S[:] = 0

    def compact(self, n_fed: Mapping[int, int]) -> dict[int, int]:
        """Moves active rows down until they fill most of the range from row 0; returns {old row: new row}.

        `n_fed` says for each active row how many of its positions are in use.
        """
        moves: dict[int, int] = {}
        active = np.flatnonzero(self._active_S)
        idle = np.flatnonzero(~self._active_S)
        n_active = len(active)
        for source, target in zip(active[::-1].tolist(), idle.tolist(), strict=False):
            if n_active >= _DENSE * (source + 1) or target > source:
                break
            self._swap(source, target, max(1, n_fed[source], int(self._n_valid_S[target])))
            moves[source] = target
        return moves

    def _swap(self, a: int, b: int, n_tokens: int) -> None:
        pair, reverse = [a, b], [b, a]
        self._cache.swap(a, b, n_tokens)
        for column in (self._tokens_SP, self._n_valid_S, self._n_planned_S, self._used_S, self._active_S):
            column[pair] = column[reverse]

    def _victim(self) -> int:
        idle = np.flatnonzero(~self._active_S)
        empty = idle[self._n_valid_S[idle] == 0]
        return int(empty[0]) if len(empty) else int(idle[np.argmin(self._used_S[idle])])

    def _longest(self, new: np.ndarray) -> tuple[int, int]:
        """The row that shares the longest prefix with `new`, idle and exactly used up rows first; and its length."""
        rows = np.flatnonzero(self._n_planned_S > 0)
        start, width, best = 0, 32, (0, 0)
        while len(rows) and start < len(new):
            end = min(start + width, len(new))
            same = self._tokens_SP[rows, start:end] == new[start:end]
            same &= np.arange(start, end) < self._n_planned_S[rows, None]
            n_same = np.where(same.all(1), end - start, same.argmin(1))
            longest = int(n_same.max())
            if longest:
                tied = rows[n_same == longest]
                cost = self._n_planned_S[tied] + self._active_S[tied] * (1 << 40)
                best = int(tied[np.argmin(cost)]), start + longest
            rows = rows[n_same == end - start]
            start, width = end, width * 2
        return best
