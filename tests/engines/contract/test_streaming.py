"""Both forms of a stream, and a server that is killed and started again with other weights."""

from itertools import chain, pairwise
from typing import Any

import aiohttp
import msgspec
import pytest

from asearch.engines.client import EngineClient, VersionSpan
from asearch.errors import EngineError
from engines.contract.embedded_server import EmbeddedServer
from engines.contract.served import Served
from engines.contract.sglang_server import SglangServer
from engines.episodes import PROMPT, Episode
from engines.servers_for_tests import TOLERANCE, worst

PARAMS: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 50, "ignore_eos": True}


async def raw_events(session: aiohttp.ClientSession, server: Served) -> list[Any]:
    body = {"input_ids": PROMPT, "sampling_params": PARAMS, "return_logprob": True, "stream": True}
    async with session.post(server.url + "/generate", json=body) as response:
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [msgspec.json.decode(part) for part in parts[:-1]]


async def test_cumulative_events(session: aiohttp.ClientSession, server: Served, client: EngineClient) -> None:
    events = await raw_events(session, server)
    assert len(events) > 1
    for earlier, later in pairwise(events):
        assert later["output_ids"][: len(earlier["output_ids"])] == earlier["output_ids"]
        assert earlier["meta_info"]["finish_reason"] is None
    last = events[-1]["meta_info"]
    assert len(events[-1]["output_ids"]) == len(last["output_token_logprobs"]) == last["completion_tokens"] == 50


async def test_a_killed_server_comes_back_with_the_newest_weights_and_incremental_events(
    session: aiohttp.ClientSession, kind: str, other: SglangServer | EmbeddedServer, server: Served
) -> None:
    begun = EngineClient((server if kind == "sglang" else other.serving("cumulative", "v1")).url, session)
    episode = Episode(begun, PROMPT, "cut")
    other.kill()
    with pytest.raises(EngineError):
        await episode.task
    assert not await begun.health()
    again = other.serving("incremental", "v2")
    client = EngineClient(again.url, session)
    assert (await client.model_info())["weight_version"] == "v2"
    events = await raw_events(session, again)
    ids: list[int] = list(chain.from_iterable(event["output_ids"] for event in events))
    logprobs = [entry[0] for event in events for entry in event["meta_info"]["output_token_logprobs"]]
    assert len(events) > 1 and len(ids) == 50
    # One client that has loaded the weights itself, and one that has not.
    await client.pause("retract")
    await client.update_weights(str(again.model("v2")), "v2")
    await client.resume()
    episodes = [
        Episode(each, PROMPT, f"again-{i}", **PARAMS) for i, each in enumerate((client, EngineClient(again.url, session)))
    ]
    for episode in episodes:
        await episode.task
        assert episode.spans() == [VersionSpan("v2", 0, 50)]
        assert worst(again.model("v2"), PROMPT, episode.ids, episode.logprobs, 0, 50) <= TOLERANCE
    assert worst(again.model("v2"), PROMPT, ids, logprobs, 0, 50) <= TOLERANCE
