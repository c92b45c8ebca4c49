"""The client of auxiliary models against a server that misbehaves in every documented way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

import asearch.engines.chat as chat_module
from asearch.configuration.auxiliary import AuxiliarySettings
from asearch.configuration.loading import load_settings, recipe_hash
from asearch.engines.chat import ChatAnswer, ChatClient, Message, Usage
from asearch.errors import (
    AuxiliaryPermanentError,
    AuxiliaryRefusedError,
    AuxiliaryRetryableError,
    AuxiliaryTimeoutError,
    ConfigError,
)

KEY = "sk-very-secret"
GOOD: dict[str, Any] = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
    "model": "judge-1",
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Endpoint:
    """Gives the listed answers in turn, the last one again and again; remembers requests and pauses."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.bodies, self.headers = answers, list[Any](), list[Any]()
        self.pauses_s: list[float] = []
        self.n_at_once = self.most_at_once = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            await asyncio.sleep(0)
            given = self.answers[min(len(self.bodies), len(self.answers)) - 1]
            if callable(given):
                return await given(request)
            status, body, *headers = given
            raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
            return web.Response(status=status, body=raw, headers=headers[0] if headers else None)
        finally:
            self.n_at_once -= 1

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)


@asynccontextmanager
async def serving(
    answers: list[Any], session: aiohttp.ClientSession, **changes: Any
) -> AsyncIterator[tuple[Endpoint, ChatClient]]:
    endpoint = Endpoint(answers)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    settings = AuxiliarySettings(base_url=f"http://{host}:{port}/v1", model="judge", api_key_env="JUDGE_KEY", **changes)
    try:
        client = ChatClient(settings, session, environ={"JUDGE_KEY": KEY}, sleep=endpoint.sleep, draw=lambda: 1.0)
        yield endpoint, client
    finally:
        await runner.cleanup()


ASK = [Message("user", "is it so?")]


async def test_request_and_answer(session: aiohttp.ClientSession) -> None:
    async with serving([(200, GOOD)], session) as (endpoint, client):
        answer = await client.chat(ASK, stop=["\n"], json_schema={"type": "object"})
    assert answer == ChatAnswer("yes", "stop", Usage(7, 1), "judge-1", 1)
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    assert endpoint.bodies == [
        {
            "model": "judge",
            "messages": [{"role": "user", "content": "is it so?"}],
            "temperature": 0.0,
            "max_tokens": 1024,
            "stop": ["\n"],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
    ]
    assert KEY not in repr(client)


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.abort()
    return response


PASSING: list[tuple[Any, float]] = [
    ((429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}), 7.0),
    ((429, {"error": "x"}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), 0.5),
    ((408, {}), 0.5),
    ((409, {}), 0.5),
    ((500, b"<html>"), 0.5),
    ((503, {}, {"Retry-After": "0"}), 0.5),
    ((200, b'{"choices": [{"mess'), 0.5),
    ((200, {"choices": []}), 0.5),
    (cut_off, 0.5),
]


@pytest.mark.parametrize(("failure", "pause_s"), PASSING)
async def test_what_may_pass_is_tried_again(session: aiohttp.ClientSession, failure: Any, pause_s: float) -> None:
    async with serving([failure, (200, GOOD)], session) as (endpoint, client):
        answer = await client.chat(ASK)
    assert (answer.text, answer.n_tries) == ("yes", 2)
    assert endpoint.pauses_s == [pause_s]


async def test_tries_are_bounded_and_pauses_grow(session: aiohttp.ClientSession) -> None:
    async with serving([(500, {"error": {"message": f"no, {KEY}"}})], session, max_tries=4) as (endpoint, client):
        with pytest.raises(AuxiliaryRetryableError, match="failed 4 times, last: status 500: no, ") as caught:
            await client.chat(ASK)
    assert endpoint.pauses_s == [0.5, 1.0, 2.0]
    assert KEY not in str(caught.value)


FINAL: list[tuple[Any, type[Exception], str]] = [
    ((400, {"error": {"message": "too long"}}), AuxiliaryPermanentError, "refuses the request; status 400: too long"),
    ((401, {"error": {"message": f"bad key {KEY}"}}), AuxiliaryPermanentError, "JUDGE_KEY"),
    ((404, b"not here"), AuxiliaryPermanentError, "not here"),
    ((307, b"", {"Location": "http://elsewhere.invalid/"}), AuxiliaryPermanentError, "status 307"),
    ((200, {"choices": [{"message": {"content": None, "refusal": "I will not"}}]}), AuxiliaryRefusedError, "I will not"),
    ((200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}), AuxiliaryRefusedError, "filter"),
    (
        (200, {"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]}),
        AuxiliaryPermanentError,
        "without text",
    ),
    ((200, b"x" * 3000), AuxiliaryPermanentError, "more than 2000 bytes"),
]


@pytest.mark.parametrize(("failure", "kind", "said"), FINAL)
async def test_what_will_not_pass_is_not_tried_again(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, failure: Any, kind: type[Exception], said: str
) -> None:
    monkeypatch.setattr(chat_module, "MAX_REPLY_BYTES", 2000)
    async with serving([failure, (200, GOOD)], session) as (endpoint, client):
        with pytest.raises(kind, match=said) as caught:
            await client.chat(ASK)
    assert len(endpoint.bodies) == 1
    assert KEY not in str(caught.value)


async def test_the_deadline_bounds_slow_answers_and_retries(session: aiohttp.ClientSession) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with serving([slow], session, timeout_s=0.2) as (_, client):
        with pytest.raises(AuxiliaryTimeoutError, match=r"within 0\.2 s"):
            await client.chat(ASK)


async def test_calls_at_once_are_bounded(session: aiohttp.ClientSession) -> None:
    async def short(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.Response(body=msgspec.json.encode(GOOD))

    async with serving([short], session, max_concurrency=3) as (endpoint, client):
        await asyncio.gather(*(client.chat(ASK) for _ in range(12)))
    assert endpoint.most_at_once == 3


async def test_an_absent_server_is_retryable(session: aiohttp.ClientSession) -> None:
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)

    settings = AuxiliarySettings(base_url="http://127.0.0.1:9/v1", model="m", max_tries=3)
    with pytest.raises(AuxiliaryRetryableError, match="failed 3 times"):
        await ChatClient(settings, session, sleep=sleep).chat(ASK)
    assert len(pauses_s) == 2


async def test_a_key_that_is_not_set_is_named(session: aiohttp.ClientSession) -> None:
    settings = AuxiliarySettings(base_url="http://127.0.0.1:9/v1", model="m", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        ChatClient(settings, session, environ={})


TABLE = {"base_url": "http://127.0.0.1:30000/v1", "model": "judge"}


def test_settings_are_a_table_per_name_and_part_of_the_recipe() -> None:
    settings = load_settings("toy", values={"auxiliary.judge": TABLE, "auxiliary.reader": TABLE})
    assert settings.auxiliary["judge"].model == "judge"
    assert set(settings.auxiliary) == {"judge", "reader"}
    assert recipe_hash(settings) != recipe_hash(load_settings("toy"))
    hot = load_settings(
        "toy", ["auxiliary.judge.temperature=0.5"], {"auxiliary.judge.base_url": "http://h/v1", "auxiliary.judge.model": "m"}
    )
    assert hot.auxiliary["judge"].temperature == 0.5


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"base_url": "127.0.0.1:3000"}, r"auxiliary\.judge\.base_url"),
    ({"base_url": "file:///etc/passwd"}, r"auxiliary\.judge\.base_url"),
    ({"base_url": f"https://user:{KEY}@host/v1"}, r"auxiliary\.judge\.base_url"),
    ({"base_url": f"https://host/v1?key={KEY}"}, r"auxiliary\.judge\.base_url"),
    ({"api_key_env": KEY}, r"auxiliary\.judge\.api_key_env"),
    ({"max_tries": 0}, r"auxiliary\.judge\.max_tries"),
    ({"timeout_s": 0}, r"auxiliary\.judge\.timeout_s"),
    ({"modle": "x"}, r"unknown setting 'auxiliary\.judge\.modle'; did you mean 'model'"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_wrong_settings_are_refused_without_quoting_keys(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_settings("toy", values={"auxiliary.judge": TABLE | change})
    assert KEY not in str(caught.value)
