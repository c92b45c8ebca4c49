"""Tokens, log-probabilities and endings of `/generate`."""

import asyncio
from typing import Any

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from asearch.errors import EngineError
from asearch.models.tokenizer import Tokenizer
from engines.contract.served import Served, columns, generate
from engines.episodes import PROMPT, Episode
from engines.servers_for_tests import TOLERANCE, reference, worst


async def test_greedy_equals_the_reference(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    reply = await generate(session, server, PROMPT, temperature=0, max_new_tokens=40, ignore_eos=True)
    ids, logprobs = columns(reply)
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 40}
    assert reply["meta_info"]["weight_versions"] == [{"version": "v1", "start": 0, "end": 40}]
    assert reply["meta_info"]["prompt_tokens"] == len(PROMPT)
    assert reference(server.model("v1"), PROMPT + ids)[len(PROMPT) - 1 : -1].argmax(-1).tolist() == ids
    assert worst(server.model("v1"), PROMPT, ids, logprobs, 0, 40) <= TOLERANCE


@pytest.mark.parametrize(
    "params",
    [{"temperature": 1.0}, {"temperature": 2.0}, {"temperature": 0.5, "top_p": 0.8}, {"temperature": 1.5, "top_k": 3}],
    ids=["plain", "hot", "top_p", "top_k"],
)
async def test_logprobs_are_those_of_the_model_at_any_temperature(
    session: aiohttp.ClientSession, server: Served, client: EngineClient, params: dict[str, Any]
) -> None:
    ids, logprobs = columns(await generate(session, server, PROMPT, max_new_tokens=30, ignore_eos=True, **params))
    assert len(ids) == 30
    assert worst(server.model("v1"), PROMPT, ids, logprobs, 0, 30) <= TOLERANCE


async def test_top_k_of_one_is_greedy(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    greedy = await generate(session, server, PROMPT, temperature=0, max_new_tokens=20)
    for params in ({"temperature": 1.0, "top_k": 1}, {"temperature": 3.0, "top_p": 1e-6}):
        assert (await generate(session, server, PROMPT, max_new_tokens=20, **params))["output_ids"] == greedy["output_ids"]


async def test_a_batch_equals_single_requests(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    prompts = [list(range(i, i + 5 + 9 * i)) for i in range(1, 25)]
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    together = await generate(session, server, prompts, **params)
    await client.flush_cache()
    alone = await asyncio.gather(*(generate(session, server, prompt, **params) for prompt in prompts))
    for one, among in zip(alone, together, strict=True):
        ids, logprobs = columns(one)
        batched_ids, batched = columns(among)
        assert ids == batched_ids
        assert logprobs == pytest.approx(batched, abs=TOLERANCE)


async def test_an_extended_prompt_reuses_its_prefix_until_the_weights_change(
    session: aiohttp.ClientSession, server: Served, client: EngineClient
) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True}
    first = await generate(session, server, PROMPT, **params)
    assert first["meta_info"]["cached_tokens"] == 0
    longer = PROMPT + first["output_ids"] + [1, 2, 3]
    second = await generate(session, server, longer, **params)
    assert len(PROMPT) <= second["meta_info"]["cached_tokens"] <= len(PROMPT) + 19
    ids, logprobs = columns(second)
    assert worst(server.model("v1"), longer, ids, logprobs, 0, 20) <= TOLERANCE
    await client.pause("retract")
    await client.update_weights(str(server.model("v2")), "v2")
    await client.resume()
    third = await generate(session, server, longer, **params)
    assert third["meta_info"]["cached_tokens"] == 0
    ids, logprobs = columns(third)
    assert worst(server.model("v2"), longer, ids, logprobs, 0, 20) <= TOLERANCE


async def test_thirty_two_at_once(server: Served, client: EngineClient) -> None:
    """Prompts that share prefixes of many lengths read only their own cache."""
    base = [(7 * i) % 250 for i in range(120)]
    prompts = [base[: 20 + 9 * (i % 11)] + [200 + i] * (1 + i % 4) for i in range(32)]
    episodes = [Episode(client, prompt, f"crowd-{i}", max_new_tokens=20 + i) for i, prompt in enumerate(prompts)]
    for i, episode in enumerate(episodes):
        await episode.task
        assert (episode.finish, len(episode.ids)) == ("length", 20 + i)
        assert worst(server.model("v1"), episode.prompt, episode.ids, episode.logprobs, 0, 20 + i) <= TOLERANCE


async def test_stop_ids(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40}
    ids = (await generate(session, server, PROMPT, **params, ignore_eos=True))["output_ids"]
    token = ids[10]
    first = ids.index(token)
    for given, finish in (
        ({"stop_token_ids": [token]}, {"type": "stop", "matched": token}),
        ({"stop_token_ids": [token], "ignore_eos": True}, {"type": "length", "length": 40}),
    ):
        stopped = await generate(session, server, PROMPT, **params, **given)
        assert stopped["meta_info"]["finish_reason"] == finish
        assert stopped["output_ids"] == (ids[: first + 1] if finish["type"] == "stop" else ids)
    episode = Episode(client, PROMPT, "stops", temperature=0, stop_token_ids=[token], ignore_eos=False)
    await episode.task
    assert (episode.finish, episode.chunks[-1].matched, episode.ids) == ("stop", token, ids[: first + 1])


async def test_a_stop_string_may_span_tokens(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    """The tokens end with the one that completes the string; the string is named."""
    tokenizer = Tokenizer.load(server.model("v1"))
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": 60, "ignore_eos": True}
    prompts = [[*PROMPT, i] for i in range(30)]
    free = await generate(session, server, prompts, **params)
    at, end, stop = next(
        (at, end, stop)
        for at, reply in enumerate(free)
        for end in range(4, 60)
        if (stop := spanning(tokenizer, reply["output_ids"], end)) is not None
    )
    ids = free[at]["output_ids"][:end]
    stopped = await generate(session, server, prompts[at], **params, stop=["never there", stop])
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert columns(stopped)[0] == ids
    assert stop not in stopped["text"]
    episode = Episode(client, prompts[at], "stops", **params, stop=["never there", stop])
    await episode.task
    assert (episode.finish, episode.chunks[-1].matched, episode.ids) == ("stop", stop, ids)


def spanning(tokenizer: Tokenizer, ids: list[int], end: int) -> str | None:
    """An ASCII string made of the ends of tokens end - 2 and end - 1, which is not there before them."""
    earlier, last = tokenizer.token_bytes(ids[end - 2]), tokenizer.token_bytes(ids[end - 1])
    before = b"".join(tokenizer.token_bytes(token) for token in ids[: end - 1])
    stop = earlier[-1:] + last
    printable = all(0x20 < byte < 0x7F for byte in stop) and earlier and last
    return stop.decode() if printable and stop not in before + last[:-1] else None


BAD: list[dict[str, Any]] = [
    {"input_ids": []},
    {"input_ids": [1, [2]]},
    {"input_ids": "abc"},
    {},
    {"input_ids": [1] * 600},
    {"input_ids": [1], "sampling_params": {"temperature": -1}},
    {"input_ids": [1], "sampling_params": {"top_p": 0}},
    {"input_ids": [1], "sampling_params": {"max_tokens": 3}},
]


async def test_bad_requests_are_refused_with_a_reason(
    session: aiohttp.ClientSession, server: Served, client: EngineClient
) -> None:
    for body in BAD:
        async with session.post(server.url + "/generate", json=body) as response:
            assert response.status == 400, body
            assert await response.text()
    with pytest.raises(EngineError, match="context length"):
        await Episode(client, [1] * 600, "long").task
    assert await client.health()
