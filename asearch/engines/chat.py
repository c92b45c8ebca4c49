"""Client of OpenAI-compatible `/chat/completions` endpoints: auxiliary models such as judges, readers and user simulators."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import aiohttp
import msgspec

from asearch.configuration.auxiliary import AuxiliarySettings, check_auxiliary
from asearch.errors import (
    AuxiliaryPermanentError,
    AuxiliaryRefusedError,
    AuxiliaryRetryableError,
    AuxiliaryTimeoutError,
    ConfigError,
)

MAX_REPLY_BYTES = 8 << 20
_RETRIED_STATUS = frozenset((408, 409, 425, 429))
_REFUSED_FINISH = "content_filter"
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_QUOTED_CHARS = 300


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens that a call was charged for."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatAnswer(msgspec.Struct, frozen=True):
    """What the model said. `text` is data: never instructions, HTML or code to be run."""

    text: str
    finish: str | None
    """`stop` or `length`, where the server says so."""
    usage: Usage
    model: str
    n_tries: int


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    usage: Usage | None = None
    model: str = ""


_reply = msgspec.json.Decoder(_Reply)


class ChatClient:
    """Calls one endpoint, at most `max_concurrency` times at once. The session is the caller's."""

    def __init__(
        self,
        settings: AuxiliarySettings,
        session: aiohttp.ClientSession,
        *,
        environ: Mapping[str, str] = os.environ,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives numbers in [0, 1) that spread retries. Raises ConfigError for wrong settings or a missing key."""
        check_auxiliary({settings.model: settings})
        self._settings, self._session, self._sleep, self._draw = settings, session, sleep, draw
        self._base = settings.base_url.rstrip("/")
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._key = _key(settings, environ)

    def __repr__(self) -> str:
        return f"ChatClient({self._settings.model} at {self._base})"

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        stop: Sequence[str] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> ChatAnswer:
        """The model's answer. With `json_schema` the endpoint is asked for JSON of that schema; it is not checked here.

        Raises AuxiliaryTimeoutError when `timeout_s` is over, AuxiliaryRetryableError when all tries failed in ways that may
        pass, AuxiliaryRefusedError when the model or a filter declines, AuxiliaryPermanentError when asking again is no use.
        """
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": list(messages),
            "temperature": settings.temperature if temperature is None else temperature,
            "max_tokens": settings.max_tokens if max_tokens is None else max_tokens,
        }
        if stop:
            body["stop"] = list(stop)
        if json_schema is not None:
            form = {"name": "answer", "strict": True, "schema": dict(json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            async with asyncio.timeout(settings.timeout_s), self._slots:
                return await self._tries(msgspec.json.encode(body))
        except TimeoutError as error:
            raise AuxiliaryTimeoutError(f"{self!r} did not answer within {settings.timeout_s:g} s") from error

    async def models(self, timeout_s: float = 10.0) -> list[str]:
        """Names of the models that the endpoint serves, in one try. Raises the errors of `chat`."""
        try:
            async with asyncio.timeout(timeout_s):
                _, raw = await self._once("GET", "/models", None)
        except TimeoutError as error:
            raise AuxiliaryTimeoutError(f"{self!r} did not answer within {timeout_s:g} s") from error
        except _Retryable as failure:
            raise AuxiliaryRetryableError(f"{self!r} does not answer: {failure}") from failure
        try:
            return [model["id"] for model in msgspec.json.decode(raw, type=dict[str, Any])["data"]]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise AuxiliaryPermanentError(f"{self!r} answered /models with something else than a list of models") from error

    async def _tries(self, body: bytes) -> ChatAnswer:
        n_tries = 0
        while True:
            n_tries += 1
            try:
                _, raw = await self._once("POST", "/chat/completions", body)
                return self._answer(raw, n_tries)
            except _Retryable as failure:
                if n_tries >= self._settings.max_tries:
                    raise AuxiliaryRetryableError(f"{self!r} failed {n_tries} times, last: {failure}") from failure
                await self._sleep(self._pause_s(n_tries, failure.retry_after_s))

    def _pause_s(self, n_tries: int, retry_after_s: float | None) -> float:
        """Doubled each time, half of it at random, so that callers who failed together do not return together."""
        longest = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2 ** (n_tries - 1))
        return max(retry_after_s or 0.0, longest * (0.5 + 0.5 * self._draw()))

    async def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            # A redirect could carry the key to another host.
            async with self._session.request(
                method, self._base + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                raw = await self._bounded(response)
                if response.status == 200:
                    return response.status, raw
                raise self._failure(response, raw)
        except aiohttp.ClientError as error:
            raise _Retryable(self._quoted(f"{type(error).__name__}: {error}")) from error

    async def _bounded(self, response: aiohttp.ClientResponse) -> bytes:
        raw = bytearray()
        async for part in response.content.iter_any():
            raw += part
            if len(raw) > MAX_REPLY_BYTES:
                response.close()
                raise AuxiliaryPermanentError(f"{self!r} answered with more than {MAX_REPLY_BYTES} bytes")
        return bytes(raw)

    def _failure(self, response: aiohttp.ClientResponse, raw: bytes) -> Exception:
        said = self._quoted(f"status {response.status}: {_error_text(raw)}")
        if response.status in _RETRIED_STATUS or response.status >= 500:
            return _Retryable(said, _retry_after_s(response))
        if response.status in (401, 403):
            hint = self._settings.api_key_env or "no key is sent: set api_key_env"
            return AuxiliaryPermanentError(f"{self!r} does not accept the key ({hint}); {said}")
        return AuxiliaryPermanentError(f"{self!r} refuses the request; {said}")

    def _answer(self, raw: bytes, n_tries: int) -> ChatAnswer:
        try:
            reply = _reply.decode(raw)
        except msgspec.MsgspecError as error:
            raise _Retryable(f"the answer is malformed: {error}") from error
        if not reply.choices:
            raise _Retryable("the answer has no choices")
        choice = reply.choices[0]
        if choice.finish_reason == _REFUSED_FINISH or choice.message.refusal:
            raise AuxiliaryRefusedError(f"{self!r} declines to answer: {self._quoted(choice.message.refusal or _REFUSED_FINISH)}")
        if choice.message.content is None:
            raise AuxiliaryPermanentError(f"{self!r} answered without text (finish reason {choice.finish_reason!r})")
        return ChatAnswer(choice.message.content, choice.finish_reason, reply.usage or Usage(), reply.model, n_tries)

    def _quoted(self, text: str) -> str:
        """The text, short and without the key, which some servers repeat."""
        return (text.replace(self._key, "***") if self._key else text)[:_QUOTED_CHARS]


class _Retryable(Exception):
    def __init__(self, what: str, retry_after_s: float | None = None) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


def _key(settings: AuxiliarySettings, environ: Mapping[str, str]) -> str | None:
    if settings.api_key_env is None:
        return None
    key = environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {settings.api_key_env} is not set: it must hold the key of {settings.base_url}"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the environment variable {settings.api_key_env} holds characters that no key has")
    return key


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a Retry-After header, but not of one that is a date."""
    with suppress(KeyError, ValueError):
        seconds = float(response.headers["Retry-After"])
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _error_text(raw: bytes) -> str:
    with suppress(msgspec.MsgspecError, KeyError, TypeError):
        decoded = msgspec.json.decode(raw, type=dict[str, Any])
        inner = decoded.get("error") or decoded
        return str(inner.get("message") or inner) if isinstance(inner, dict) else str(inner)
    return raw[:_QUOTED_CHARS].decode(errors="replace")
