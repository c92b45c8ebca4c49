"""OpenAI's `/v1` routes, by our client of auxiliary models and as raw HTTP."""

from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest

from asearch.configuration.auxiliary import AuxiliarySettings
from asearch.engines.chat import ChatClient, Message
from asearch.engines.client import EngineClient
from asearch.errors import AuxiliaryPermanentError
from engines.contract.served import Served, post

QUESTION = [Message("system", "stop"), Message("user", "the w1 w2")]


@pytest.fixture
def chat(server: Served, client: EngineClient, session: aiohttp.ClientSession) -> Callable[..., ChatClient]:
    def made(**changes: Any) -> ChatClient:
        settings = AuxiliarySettings(base_url=server.url + "/v1", model="m", max_tokens=12, **changes)
        return ChatClient(settings, session)

    return made


async def test_a_chat_has_an_answer_and_its_usage(chat: Callable[..., ChatClient]) -> None:
    first, second = [await chat().chat(QUESTION) for _ in range(2)]
    assert first.text and first.text == second.text, "greedy"
    assert first.finish == "length"
    assert first.usage.completion_tokens == 12
    assert first.usage.prompt_tokens > 5
    longer = await chat().chat([*QUESTION, Message("assistant", "ab"), Message("user", "the")])
    assert longer.usage.prompt_tokens > first.usage.prompt_tokens


async def test_a_chat_ends_before_its_stop_string(chat: Callable[..., ChatClient]) -> None:
    free = await chat().chat(QUESTION, max_tokens=40)
    stop = next(
        free.text[i : i + 2] for i in range(2, 38) if free.text[i : i + 2].isascii() and free.text[i : i + 2].isprintable()
    )
    answer = await chat().chat(QUESTION, max_tokens=40, stop=[stop])
    assert (answer.finish, answer.text) == ("stop", free.text[: free.text.index(stop)])


async def test_models_are_listed(chat: Callable[..., ChatClient], server: Served) -> None:
    assert await chat().models() == [str(server.model("v1"))]


async def test_a_prompt_that_is_too_long_is_refused_for_good(chat: Callable[..., ChatClient]) -> None:
    with pytest.raises(AuxiliaryPermanentError, match="context length"):
        await chat().chat([Message("user", "the " * 600)])


@pytest.mark.parametrize("body", [{}, {"messages": "hello"}, {"messages": [{"role": "user"}], "temperature": -1}])
async def test_bad_requests_are_refused(session: aiohttp.ClientSession, server: Served, client: EngineClient, body: Any) -> None:
    async with session.post(server.url + "/v1/chat/completions", json={"model": "m", **body}) as response:
        assert response.status == 400
        reply = await response.json()
        assert reply.get("error", reply)["message"]


def parts(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [msgspec.json.decode(line) for line in lines[:-1]]


async def test_a_streamed_chat_is_the_whole_one(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    messages = [{"role": message.role, "content": message.content} for message in QUESTION]
    body = {"model": "m", "messages": messages, "max_tokens": 20, "temperature": 0}
    whole = await post(session, server, body, "/v1/chat/completions")
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with session.post(server.url + "/v1/chat/completions", json=streamed) as response:
        assert response.content_type == "text/event-stream"
        events = parts(await response.text())
    deltas = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(each["delta"].get("content") or "" for each in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[0]["delta"]["role"] == "assistant"
    assert [each["finish_reason"] for each in deltas if each["finish_reason"]] == ["length"]
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 20


async def test_a_text_completion(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    body: dict[str, Any] = {"model": "m", "max_tokens": 8, "temperature": 0}
    by_text = await post(session, server, body | {"prompt": "stop stop"}, "/v1/completions")
    by_ids = await post(session, server, body | {"prompt": [257, 258]}, "/v1/completions")
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"] != ""
    assert by_text["usage"]["prompt_tokens"] == 2
    async with session.post(server.url + "/v1/completions", json=body | {"prompt": "stop stop", "stream": True}) as response:
        events = parts(await response.text())
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    assert text == by_text["choices"][0]["text"]
