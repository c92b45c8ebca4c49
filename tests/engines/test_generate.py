"""`/generate` of the embedded engine: results, options, refusals."""

import asyncio
from typing import Any

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from engines.servers_for_tests import TOLERANCE, Running, reference, worst

PROMPT = list(range(3, 40))


async def post(session: aiohttp.ClientSession, server: Running, body: Any, path: str = "/generate") -> Any:
    async with session.post(server.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def generate(session: aiohttp.ClientSession, server: Running, ids: Any, **params: Any) -> Any:
    return await post(session, server, {"input_ids": ids, "sampling_params": params, "return_logprob": True})


def columns(reply: Any) -> tuple[list[int], list[float]]:
    entries = reply["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in entries] == reply["output_ids"]
    assert all(entry[2] is None for entry in entries)
    return reply["output_ids"], [entry[0] for entry in entries]


async def test_greedy_equals_the_reference(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    reply = await generate(session, server, PROMPT, temperature=0, max_new_tokens=40, ignore_eos=True)
    ids, logprobs = columns(reply)
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 40}
    assert reply["meta_info"]["weight_versions"] == [{"version": "v1", "start": 0, "end": 40}]
    expected = reference(server.folder / "v1", PROMPT + ids)
    assert expected[len(PROMPT) - 1 : -1].argmax(-1).tolist() == ids
    assert worst(server.folder / "v1", PROMPT, ids, logprobs, 0, 40) <= TOLERANCE


async def test_logprobs_are_raw_at_any_temperature(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    cases: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 2.0},
        {"temperature": 0.5, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 3},
    ]
    for params in cases:
        ids, logprobs = columns(await generate(session, server, PROMPT, max_new_tokens=30, ignore_eos=True, **params))
        assert worst(server.folder / "v1", PROMPT, ids, logprobs, 0, 30) <= TOLERANCE


async def test_top_k_of_one_is_greedy(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    greedy = await generate(session, server, PROMPT, temperature=0, max_new_tokens=20)
    for params in ({"temperature": 1.0, "top_k": 1}, {"temperature": 3.0, "top_p": 1e-6}):
        assert (await generate(session, server, PROMPT, max_new_tokens=20, **params))["output_ids"] == (greedy["output_ids"])


async def test_seeded_requests_repeat_alone_and_in_a_crowd(
    session: aiohttp.ClientSession, server: Running, client: EngineClient
) -> None:
    params = {"temperature": 1.0, "max_new_tokens": 25, "sampling_seed": 7, "ignore_eos": True}
    alone = await generate(session, server, PROMPT, **params)
    crowd = [generate(session, server, [*PROMPT, i], temperature=1.0, max_new_tokens=30) for i in range(30)]
    among, *_ = await asyncio.gather(generate(session, server, PROMPT, **params), *crowd)
    assert among["output_ids"] == alone["output_ids"]
    other = await generate(session, server, PROMPT, **(params | {"sampling_seed": 8}))
    assert other["output_ids"] != alone["output_ids"]


async def test_a_batch_equals_single_requests(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    prompts = [list(range(i, i + 5 + 9 * i)) for i in range(1, 25)]
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    together = await generate(session, server, prompts, **params)
    await client.flush_cache()
    for prompt, reply in zip(prompts, together, strict=True):
        ids, logprobs = columns(await generate(session, server, prompt, **params))
        batched_ids, batched = columns(reply)
        assert ids == batched_ids
        assert logprobs == pytest.approx(batched, abs=TOLERANCE)


async def test_an_extended_prompt_reuses_its_prefix(
    session: aiohttp.ClientSession, server: Running, client: EngineClient
) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True}
    first = await generate(session, server, PROMPT, **params)
    assert first["meta_info"]["cached_tokens"] == 0
    longer = PROMPT + first["output_ids"] + [1, 2, 3]
    second = await generate(session, server, longer, **params)
    assert second["meta_info"]["cached_tokens"] == len(PROMPT) + 19
    ids, logprobs = columns(second)
    assert worst(server.folder / "v1", longer, ids, logprobs, 0, 20) <= TOLERANCE
    await client.update_weights(str(server.folder / "v2"), "v2")
    third = await generate(session, server, longer, **params)
    assert third["meta_info"]["cached_tokens"] == 0
    ids, logprobs = columns(third)
    assert worst(server.folder / "v2", longer, ids, logprobs, 0, 20) <= TOLERANCE


async def test_branches_of_one_prompt_do_not_mix(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    """Prompts that share prefixes of many lengths, arriving together and later, read only their own cache."""
    base = [(7 * i) % 250 for i in range(120)]
    prompts = [base[: 20 + 9 * i] + [200 + i] * (1 + i % 4) for i in range(11)]
    params: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 15, "ignore_eos": True}
    for _ in range(3):
        replies = await asyncio.gather(*(generate(session, server, prompt, **params) for prompt in prompts * 3))
        for prompt, reply in zip(prompts * 3, replies, strict=True):
            ids, logprobs = columns(reply)
            assert worst(server.folder / "v1", prompt, ids, logprobs, 0, 15) <= TOLERANCE
        prompts = [prompt + reply["output_ids"] for prompt, reply in zip(prompts, replies, strict=False)]


async def test_stop_ids_strings_and_minimum(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "sampling_seed": 3, "max_new_tokens": 40}
    free = await generate(session, server, PROMPT, **params, ignore_eos=True)
    ids = free["output_ids"]
    token = ids[10]
    first = ids.index(token)
    stopped = await generate(session, server, PROMPT, **params, stop_token_ids=[token])
    assert stopped["output_ids"] == ids[: first + 1]
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}
    later = await generate(session, server, PROMPT, **params, stop_token_ids=[token], min_new_tokens=first + 5)
    assert token not in later["output_ids"][: first + 5]
    word = await post(session, server, {"text": "stop stop", "sampling_params": params})
    assert word["meta_info"]["prompt_tokens"] == 2


async def test_a_stop_string_may_span_tokens(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "sampling_seed": 3, "max_new_tokens": 200, "ignore_eos": True}
    free = await generate(session, server, PROMPT, **params)
    text = free["text"]
    start = next(i for i in range(40, len(text) - 3) if text[i : i + 3].isascii() and text.index(text[i : i + 3]) == i)
    stop = text[start : start + 3]
    stopped = await generate(session, server, PROMPT, **params, stop=["never there", stop])
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert stopped["text"] == text[:start]
    assert stopped["output_ids"] == free["output_ids"][: len(stopped["output_ids"])]
    assert stopped["meta_info"]["weight_versions"][-1]["end"] == len(stopped["output_ids"])


BAD: list[tuple[Any, str]] = [
    ({"input_ids": [1, 300]}, "outside the vocabulary"),
    ({"input_ids": [-1]}, "outside the vocabulary"),
    ({"input_ids": []}, "empty"),
    ({"input_ids": [[1], []]}, "empty"),
    ({"input_ids": [1, [2]]}, "mixture"),
    ({"input_ids": "abc"}, "not a valid request"),
    ({}, "input_ids or text"),
    ({"input_ids": [1] * 500}, "context length of 512"),
    ({"input_ids": [1], "sampling_params": {"max_new_tokens": 0}}, "max_new_tokens"),
    ({"input_ids": [1], "sampling_params": {"temperature": -1}}, "temperature"),
    ({"input_ids": [1], "sampling_params": {"top_p": 0}}, "top_p"),
    ({"input_ids": [1], "sampling_params": {"max_tokens": 3}}, "max_tokens"),
    ({"input_ids": [1], "sampling_params": {"frequency_penalty": 0.5}}, "frequency_penalty"),
    ({"input_ids": [1], "sampling_params": {"n": 2}}, "parameter n"),
    ({"input_ids": [1], "logprob_start_len": 0}, "logprob_start_len"),
    ({"input_ids": [1], "rid": ["a", "b"]}, "one entry per prompt"),
    ([1], "not a valid request"),
]


@pytest.mark.parametrize(("body", "said"), BAD)
async def test_bad_requests_are_refused(
    session: aiohttp.ClientSession, server: Running, client: EngineClient, body: Any, said: str
) -> None:
    async with session.post(server.url + "/generate", json=body) as response:
        assert response.status == 400
        assert said in (await response.json())["error"]["message"]


async def test_malformed_bodies_and_routes(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    for raw in (b"{", b"\xff\xfe", b'{"rid": 1e400, "mode": 2, "input_ids": 1e400}', b"null"):
        for path in ("/generate", "/update_weights_from_disk", "/pause_generation", "/abort_request"):
            async with session.post(server.url + path, data=raw) as response:
                assert response.status == 400, (raw, path)
                assert (await response.json())["error"]["message"]
    async with session.get(server.url + "/nowhere") as response:
        assert response.status == 404
    async with session.get(server.url + "/generate") as response:
        assert response.status == 405
    assert await client.health()


async def test_a_body_of_a_megabyte_is_read(session: aiohttp.ClientSession, server: Running, client: EngineClient) -> None:
    async with session.post(server.url + "/generate", json={"input_ids": [1] * 600_000}) as response:
        assert response.status == 400
        assert "context length" in (await response.json())["error"]["message"]
