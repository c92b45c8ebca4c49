"""Which row of the cache holds which sequence: reuse of prefixes, eviction, and keeping running rows together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asearch.models.kv_cache import KvCache

_BLOCK = 16
"""Prefixes are looked up at multiples of so many tokens, and shorter common prefixes are computed again."""
_MIN_WAIT = 32
"""A prompt waits for a running one if that saves it at least so many tokens."""
_MAX_LOSS = 0.25
"""Share of a kept sequence that a prompt may overwrite instead of copying its prefix."""
_DENSE = 0.6


@dataclass(slots=True, eq=False)
class _Kept:
    """One row. Active: a request runs in it. Idle: kept for reuse, or empty."""

    row: int
    tokens: list[int] = field(default_factory=list[int])
    """What the row holds or, while a prompt is fed, will hold."""
    n_valid: int = 0
    """Tokens whose keys and values are there."""
    keys: list[int] = field(default_factory=list[int])
    """Hashes of the prefixes of 1, 2, ... blocks of `tokens`."""
    active: bool = False
    used: int = 0


class Rows:
    """Book-keeping of a `KvCache`."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._kept = [_Kept(row) for row in range(cache.n_rows)]
        self._by_prefix: dict[int, _Kept] = {}
        """Hash of a prefix of whole blocks to a row that begins with it, the latest one."""
        self._clock = 0

    def acquire(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Takes a row for a sequence; returns it and how many of its tokens are already there (at least one is not).

        None asks to try again after the next step: a running prompt shares a long prefix that is not computed yet.
        The caller guarantees that a row is idle.
        """
        new = list(tokens)
        source, matched = self._longest(new)
        if source is not None and source.active and matched >= source.n_valid + _MIN_WAIT:
            return None
        kept, n_reused = self._choose(source, matched)
        self._forget(kept, n_reused if kept is source else 0)
        kept.tokens, kept.n_valid, kept.active = new, n_reused, True
        self._remember(kept)
        return kept.row, n_reused

    def computed(self, row: int, n_tokens: int) -> None:
        """Says that keys and values of the first `n_tokens` tokens of the row's prompt are there."""
        self._kept[row].n_valid = n_tokens

    def release(self, row: int, tokens: Sequence[int], n_before: int) -> None:
        """Makes a row idle; it holds the first `n_before` tokens known for it, then `tokens`."""
        kept = self._kept[row]
        self._forget(kept, n_before)
        kept.tokens = kept.tokens[:n_before] + list(tokens)
        kept.n_valid = len(kept.tokens)
        kept.active = False
        self._clock += 1
        kept.used = self._clock
        self._remember(kept)

    def flush(self) -> None:
        """Forgets everything; no row may be active."""
        if any(kept.active for kept in self._kept):
            raise AssertionError("rows are flushed only when none is active")
        self._kept = [_Kept(row) for row in range(self._cache.n_rows)]
        self._by_prefix = {}

    def compact(self, n_fed: Mapping[int, int]) -> dict[int, int]:
        """Moves active rows down until they fill most of the range from row 0; returns {old row: new row}.

        `n_fed` says for each active row how many of its positions are in use.
        """
        moves: dict[int, int] = {}
        target = 0
        for source in sorted(n_fed, reverse=True):
            if len(n_fed) >= _DENSE * (source + 1):
                break
            while self._kept[target].active:
                target += 1
            if target > source:
                break
            self._cache.swap(source, target, max(1, n_fed[source], self._kept[target].n_valid))
            self._kept[source], self._kept[target] = self._kept[target], self._kept[source]
            self._kept[source].row, self._kept[target].row = source, target
            moves[source] = target
        return moves

    def _choose(self, source: _Kept | None, matched: int) -> tuple[_Kept, int]:
        """The row to use, and how many tokens are in it: `source` itself, or another with its prefix copied."""
        if source is not None:
            matched = min(matched, source.n_valid)
            loss = source.n_valid - matched
            if not source.active and matched and loss <= max(_BLOCK, _MAX_LOSS * source.n_valid):
                return source, matched
        victim = min((kept for kept in self._kept if not kept.active), key=lambda kept: (kept.n_valid > 0, kept.used))
        if source is None or matched < _BLOCK:
            return victim, 0
        if victim is not source:
            self._cache.copy_prefix(source.row, victim.row, matched)
        return victim, matched

    def _longest(self, new: list[int]) -> tuple[_Kept | None, int]:
        """A row that shares the longest prefix with `new`, up to part of a block; and how many tokens of it."""
        end = len(new) - 1
        found, n_found, key = None, 0, 0
        for start in range(0, end - _BLOCK + 1, _BLOCK):
            key = hash((key, *new[start : start + _BLOCK]))
            kept = self._by_prefix.get(key)
            if kept is None:
                break
            found, n_found = kept, start + _BLOCK
        if found is None or found.tokens[:n_found] != new[:n_found]:
            return None, 0
        for ours, theirs in zip(new[n_found:end], found.tokens[n_found:], strict=False):
            if ours != theirs:
                break
            n_found += 1
        return found, n_found

    def _remember(self, kept: _Kept) -> None:
        keys, tokens = kept.keys, kept.tokens
        key = keys[-1] if keys else 0
        for start in range(len(keys) * _BLOCK, len(tokens) - _BLOCK + 1, _BLOCK):
            key = hash((key, *tokens[start : start + _BLOCK]))
            keys.append(key)
        for key in keys:
            self._by_prefix[key] = kept

    def _forget(self, kept: _Kept, n_tokens: int) -> None:
        """Drops what is known of a row beyond its first `n_tokens` tokens."""
        n_blocks = n_tokens // _BLOCK
        for key in kept.keys[n_blocks:]:
            if self._by_prefix.get(key) is kept:
                del self._by_prefix[key]
        del kept.keys[n_blocks:]
