"""What `/generate` of the embedded engine does beyond the contract: seeds, options, refusals."""

import asyncio
from typing import Any

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from engines.contract.served import columns, generate, post
from engines.episodes import PROMPT
from engines.servers_for_tests import TOLERANCE, Running, worst


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
