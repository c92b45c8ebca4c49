"""From the events of a stream to tokens with log-probabilities and versions, of the embedded engine's streams as of SGLang's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from asearch.errors import EngineError


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Output tokens [start, end) of a request were sampled from the weights named `version`."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GeneratedChunk:
    """Tokens that a stream brought since the chunk before."""

    offset: int
    """Output tokens of the request before this chunk."""
    ids: list[int]
    logprobs: list[float]
    """Natural log-probability of each id."""
    versions: list[VersionSpan]
    """They cover exactly [offset, offset + len(ids)), in order."""
    finish: str | None
    """`stop`, `length` or `abort` on the last chunk."""
    matched: int | str | None
    """Token id or stop string that ended a `stop`."""
    n_prompt: int
    n_cached: int
    """Prompt tokens whose keys and values were reused."""


class _Finish(msgspec.Struct):
    type: str
    matched: int | str | list[int] | None = None
    message: str | None = None
    status_code: int | None = None


class _Span(msgspec.Struct):
    version: str
    start: int
    end: int


class _Meta(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: _Finish | None = None
    weight_version: str | None = None
    weight_versions: list[_Span] | None = None
    output_token_logprobs: list[tuple[float | None, int, str | None]] | None = None


class Event(msgspec.Struct):
    """One event of a stream, incremental or cumulative."""

    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    error: Any = None


class Chunks:
    """Reads the events of one request.

    The embedded engine says with every event which version sampled which token. SGLang says so with the last event only; the
    others name the version that is loaded when they are sent. That is the tokens' own as long as no weights were loaded since the
    request was sent (`is_settled`) and the name stays the same; later tokens are held back until the server has said whose they
    are.
    """

    def __init__(self, is_settled: Callable[[], bool]) -> None:
        self._is_settled = is_settled
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._n_told = 0
        self._told: list[VersionSpan] = []

    @property
    def n_held(self) -> int:
        """Tokens that came and are held back."""
        return len(self._ids)

    def take(self, event: Event) -> GeneratedChunk | None:
        """The tokens whose versions are known now; None while they are not. Raises EngineError for what must not be used."""
        meta = event.meta_info
        if meta is None:
            raise EngineError(f"the server ended the stream with an error: {message_of(event.error)}")
        finish = meta.finish_reason
        if finish is not None and (finish.status_code or 200) >= 400:
            raise EngineError(f"the server ended the request with an error: {finish.message}")
        self._hold(event, meta)
        spans = self._spans(meta)
        if spans is None:
            return None
        chunk = GeneratedChunk(
            offset=self._n_told,
            ids=self._ids,
            logprobs=self._logprobs,
            versions=spans,
            finish=None if finish is None else finish.type,
            matched=None if finish is None or isinstance(finish.matched, list) else finish.matched,
            n_prompt=meta.prompt_tokens,
            n_cached=meta.cached_tokens,
        )
        self._n_told, self._ids, self._logprobs = meta.completion_tokens, [], []
        self._told = _joined([*self._told, *spans])
        return chunk

    def _hold(self, event: Event, meta: _Meta) -> None:
        end, n_before = meta.completion_tokens, self._n_told + len(self._ids)
        n_new = end - n_before
        if n_new < 0:
            raise EngineError(f"the stream went back from {n_before} to {end} tokens")
        if n_new == 0:
            return  # SGLang says the last token once more where it ends a request that waits
        ids = _newest(event.output_ids or [], n_new, end, "output ids")
        for entry, token in zip(_newest(meta.output_token_logprobs or [], n_new, end, "logprobs"), ids, strict=True):
            if entry[0] is None or not math.isfinite(entry[0]) or entry[1] != token:
                raise EngineError(f"token {token} has log-probability {entry[0]} of token {entry[1]}")
            self._logprobs.append(entry[0])
        self._ids += ids

    def _spans(self, meta: _Meta) -> list[VersionSpan] | None:
        """Whose the held tokens are, None where that is not known yet."""
        offset, end = self._n_told, meta.completion_tokens
        if meta.weight_versions is not None:
            known = [VersionSpan(span.version, span.start, span.end) for span in meta.weight_versions]
            if offset and _joined(clipped(known, 0, offset)) != self._told:
                raise EngineError(f"the server takes back the weight versions of the tokens up to {offset}")
            return clipped(known, offset, end)
        if offset == end:
            return []
        if meta.finish_reason is not None:
            raise EngineError(f"weight versions do not cover the tokens from {offset} to {end}")
        name = meta.weight_version
        if name is None or not self._is_settled() or (self._told and self._told[-1].version != name):
            return None
        return [VersionSpan(name, offset, end)]


def clipped(spans: Sequence[VersionSpan], start: int, end: int) -> list[VersionSpan]:
    """The part of the spans that covers [start, end). Raises EngineError where they do not cover it in order."""
    kept = [VersionSpan(s.version, max(s.start, start), min(s.end, end)) for s in spans if s.end > start < end]
    kept = [span for span in kept if span.start < span.end]
    at = start
    for span in kept:
        if span.start != at:
            raise EngineError(f"weight versions do not cover the tokens from {at} to {span.start}")
        at = span.end
    if at != end:
        raise EngineError(f"weight versions do not cover the tokens from {at} to {end}")
    return kept


def message_of(raw: object) -> str:
    """The text inside an error reply, whatever its shape."""
    if isinstance(raw, str):
        try:
            raw = msgspec.json.decode(raw)
        except msgspec.MsgspecError:
            return str(raw)
    if isinstance(raw, dict):
        inner: Any = raw.get("error") or raw
        if isinstance(inner, dict):
            inner = inner.get("message") or inner
        return str(inner)
    return str(raw)


def _joined(spans: Sequence[VersionSpan]) -> list[VersionSpan]:
    """Neighbours of one version made one."""
    joined: list[VersionSpan] = []
    for span in spans:
        if joined and joined[-1].version == span.version and joined[-1].end == span.start:
            joined[-1] = VersionSpan(span.version, joined[-1].start, span.end)
        else:
            joined.append(span)
    return joined


def _newest(values: list[Any], n_new: int, n_all: int, what: str) -> list[Any]:
    """The new entries, whether an event holds only those or all so far."""
    if len(values) not in (n_new, n_all):
        raise EngineError(f"an event holds {len(values)} {what}, where {n_new} are new of {n_all}")
    return values[len(values) - n_new :]
