"""Client of SGLang's HTTP interface: the embedded engine and SGLang itself answer it alike."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from asearch.errors import EngineError

_CALL_TIMEOUT_S = 30.0
_UPDATE_TIMEOUT_S = 300.0
_LINE_BYTES = 64 << 20
"""Longest event of a stream: a cumulative one repeats all tokens and log-probabilities so far."""


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
    weight_versions: list[_Span] | None = None
    output_token_logprobs: list[tuple[float | None, int, str | None]] | None = None


class _Event(msgspec.Struct):
    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    error: Any = None


_event = msgspec.json.Decoder(_Event)


class EngineClient:
    """Calls one server. The session is the caller's; every call has a deadline and raises `EngineError`."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._base = base_url.rstrip("/")
        self._session = session

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        *,
        rid: str,
        timeout_s: float,
        idle_timeout_s: float | None = None,
    ) -> AsyncGenerator[GeneratedChunk]:
        """Streams the tokens that follow `input_ids`; the last chunk has `finish` set.

        `timeout_s` bounds the whole call, `idle_timeout_s` the wait for any one event. Leaving the iteration early
        closes the connection, which aborts the request. Raises `EngineError` for a refusal, a broken stream, or tokens
        without finite log-probabilities and versions.
        """
        body = {
            "input_ids": list(input_ids),
            "sampling_params": dict(sampling_params),
            "rid": rid,
            "stream": True,
            "return_logprob": True,
        }
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_read=idle_timeout_s)
        n_done = 0
        async with self._call("POST", "/generate", body, timeout) as response:
            async for event in _events(response):
                chunk = _chunk(event, n_done)
                n_done += len(chunk.ids)
                yield chunk
                if chunk.finish is not None:
                    return
        raise EngineError(f"the stream of request {rid} from {self._base} ended without a finish reason")

    async def pause(self, mode: str = "retract") -> None:
        """Suspends generation; `retract` makes the cache flushable, `abort` ends all requests, `in_place` neither."""
        await self._json("POST", "/pause_generation", {"mode": mode})

    async def resume(self) -> None:
        """Ends a pause."""
        await self._json("POST", "/continue_generation", {"torch_empty_cache": False})

    async def update_weights(self, path: str, version: str, timeout_s: float = _UPDATE_TIMEOUT_S) -> None:
        """Loads the weights folder `path` and names them `version`; on failure the server keeps what it had."""
        body = {"model_path": path, "weight_version": version, "flush_cache": True}
        reply = await self._json("POST", "/update_weights_from_disk", body, timeout_s)
        if not reply.get("success"):
            raise EngineError(f"{self._base} did not load {path}: {reply.get('message')}")

    async def abort(self, rid: str) -> None:
        """Ends a request; its stream still brings the tokens it had. Harmless for an unknown id."""
        async with self._call("POST", "/abort_request", {"rid": rid, "abort_all": False}, _timeout(_CALL_TIMEOUT_S)):
            pass

    async def abort_all(self) -> None:
        """Ends all requests of the server."""
        async with self._call("POST", "/abort_request", {"rid": "", "abort_all": True}, _timeout(_CALL_TIMEOUT_S)):
            pass

    async def flush_cache(self) -> None:
        """Forgets kept prefixes; refused by the server while requests run."""
        async with self._call("POST", "/flush_cache", {}, _timeout(_CALL_TIMEOUT_S)):
            pass

    async def health(self, timeout_s: float = 5.0) -> bool:
        """Whether the server answers that it is well; never raises. SGLang generates a token for it, but not while paused."""
        return await self._answers("/health", timeout_s)

    async def is_ready(self, timeout_s: float = 5.0) -> bool:
        """Whether the server has loaded its model, is well and not paused; never raises. Nothing is generated."""
        return await self._answers("/ready", timeout_s)

    async def has_model(self, timeout_s: float = 5.0) -> bool:
        """Whether the server has loaded its model; never raises."""
        return await self._answers("/model_info", timeout_s)

    async def _answers(self, path: str, timeout_s: float) -> bool:
        try:
            async with self._call("GET", path, None, _timeout(timeout_s)):
                return True
        except EngineError:
            return False

    async def model_info(self) -> dict[str, Any]:
        """`model_path`, `weight_version` and more."""
        return await self._json("GET", "/model_info", None)

    async def server_info(self) -> dict[str, Any]:
        """Settings and counters of the server."""
        return await self._json("GET", "/server_info", None)

    async def _json(self, method: str, path: str, body: object, timeout_s: float = _CALL_TIMEOUT_S) -> dict[str, Any]:
        async with self._call(method, path, body, _timeout(timeout_s)) as response:
            try:
                return msgspec.json.decode(await response.read(), type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise EngineError(f"{self._base}{path} answered with something that is not JSON: {error}") from error

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, body: object, timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self._base + path, data=data, headers=headers, timeout=timeout, read_bufsize=_LINE_BYTES
            ) as response:
                if response.status != 200:
                    text = (await response.read())[:2000].decode(errors="replace")
                    raise EngineError(f"{self._base}{path} answered {response.status}: {_message(text)}")
                yield response
        except TimeoutError as error:
            raise EngineError(f"{self._base}{path} did not answer in time ({timeout.total} s)") from error
        except aiohttp.ClientError as error:
            raise EngineError(f"{self._base}{path} could not be reached: {error or type(error).__name__}") from error


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[_Event]:
    while line := await response.content.readline():
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        try:
            yield _event.decode(payload)
        except msgspec.MsgspecError as error:
            raise EngineError(f"an event of the stream is malformed: {error}") from error


def _chunk(event: _Event, offset: int) -> GeneratedChunk:
    meta = event.meta_info
    if meta is None:
        raise EngineError(f"the server ended the stream with an error: {_message(event.error)}")
    finish = meta.finish_reason
    if finish is not None and (finish.status_code or 200) >= 400:
        raise EngineError(f"the server ended the request with an error: {finish.message}")
    end = meta.completion_tokens
    n_new = end - offset
    if n_new < 0:
        raise EngineError(f"the stream went back from {offset} to {end} tokens")
    ids = _newest(event.output_ids or [], n_new, end, "output ids")
    logprobs: list[float] = []
    for entry, token in zip(_newest(meta.output_token_logprobs or [], n_new, end, "logprobs"), ids, strict=True):
        if entry[0] is None or not math.isfinite(entry[0]) or entry[1] != token:
            raise EngineError(f"token {token} has log-probability {entry[0]} of token {entry[1]}")
        logprobs.append(entry[0])
    return GeneratedChunk(
        offset=offset,
        ids=ids,
        logprobs=logprobs,
        versions=_spans(meta.weight_versions or [], offset, end),
        finish=None if finish is None else finish.type,
        matched=None if finish is None or isinstance(finish.matched, list) else finish.matched,
        n_prompt=meta.prompt_tokens,
        n_cached=meta.cached_tokens,
    )


def _newest(values: list[Any], n_new: int, n_all: int, what: str) -> list[Any]:
    """The new entries, whether an event holds only those or all so far."""
    if len(values) not in (n_new, n_all):
        raise EngineError(f"an event holds {len(values)} {what}, where {n_new} are new of {n_all}")
    return values[len(values) - n_new :]


def _spans(spans: list[_Span], offset: int, end: int) -> list[VersionSpan]:
    kept = [VersionSpan(s.version, max(s.start, offset), min(s.end, end)) for s in spans if s.end > offset < end]
    kept = [span for span in kept if span.start < span.end]
    at = offset
    for span in kept:
        if span.start != at:
            raise EngineError(f"weight versions do not cover the tokens from {at} to {span.start}")
        at = span.end
    if at != end:
        raise EngineError(f"weight versions do not cover the tokens from {at} to {end}")
    return kept


def _message(raw: object) -> str:
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


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s)
