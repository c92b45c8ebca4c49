"""Both ways to stream, and what the client refuses."""

from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from asearch.engines.client import EngineClient, GeneratedChunk, VersionSpan
from asearch.errors import EngineError
from engines.servers_for_tests import TOLERANCE, Running

PROMPT = [(11 * i) % 256 for i in range(150)]
PARAMS: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 50, "ignore_eos": True, "sampling_seed": 1}


async def raw_events(session: aiohttp.ClientSession, server: Running, ids: Any) -> list[Any]:
    body = {"input_ids": ids, "sampling_params": PARAMS, "return_logprob": True, "stream": True}
    async with session.post(server.url + "/generate", json=body) as response:
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [msgspec.json.decode(part) for part in parts[:-1]]


async def test_a_streamed_batch(session: aiohttp.ClientSession, incremental_server: Running) -> None:
    events = await raw_events(session, incremental_server, [PROMPT[:70], PROMPT[5:], [4]])
    for index in range(3):
        own = [event for event in events if event["index"] == index]
        assert sum(len(event["output_ids"]) for event in own) == 50
        assert own[-1]["meta_info"]["finish_reason"]["type"] == "length"


async def test_the_client_reads_both_alike(
    session: aiohttp.ClientSession, server: Running, incremental_server: Running, client: EngineClient
) -> None:
    seen: list[tuple[list[int], list[float]]] = []
    for running in (server, incremental_server):
        ids: list[int] = []
        logprobs: list[float] = []
        async for chunk in EngineClient(running.url, session).generate(PROMPT, PARAMS, rid="r", timeout_s=30):
            assert chunk.versions == [VersionSpan("v1", len(ids), len(ids) + len(chunk.ids))]
            ids += chunk.ids
            logprobs += chunk.logprobs
        assert chunk.finish == "length"
        seen.append((ids, logprobs))
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] == pytest.approx(seen[1][1], abs=TOLERANCE)


def event(ids: list[int], done: int, **meta: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "completion_tokens": done,
        "finish_reason": None,
        "output_token_logprobs": [[-1.0, token, None] for token in ids],
        "weight_versions": [{"version": "a", "start": 0, "end": done}],
    }
    return {"output_ids": ids, "meta_info": fields | meta}


END: dict[str, Any] = {"finish_reason": {"type": "stop", "matched": 2}}


async def replay(session: aiohttp.ClientSession, events: list[Any], status: int = 200) -> list[GeneratedChunk]:
    """What the client makes of a server that sends exactly these events."""

    async def answer(request: web.Request) -> web.Response:
        lines = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
        return web.Response(body=lines, status=status)

    app = web.Application()
    app.router.add_post("/generate", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        client = EngineClient(f"http://{host}:{port}", session)
        return [chunk async for chunk in client.generate([1], {}, rid="r", timeout_s=5)]
    finally:
        await runner.cleanup()


async def test_spans_are_clipped_to_each_chunk(session: aiohttp.ClientSession) -> None:
    spans = [{"version": "a", "start": 0, "end": 1}, {"version": "b", "start": 1, "end": 3}]
    first = event([5, 6], 2, weight_versions=[spans[0], {"version": "b", "start": 1, "end": 2}])
    chunks = await replay(session, [first, event([7], 3, weight_versions=spans, **END)])
    assert [chunk.versions for chunk in chunks] == [
        [VersionSpan("a", 0, 1), VersionSpan("b", 1, 2)],
        [VersionSpan("b", 2, 3)],
    ]
    assert (chunks[-1].finish, chunks[-1].matched) == ("stop", 2)


REFUSED: list[tuple[list[Any], str]] = [
    ([event([5], 1)], "without a finish reason"),
    ([event([5], 1, output_token_logprobs=[], **END)], "0 logprobs"),
    ([event([5], 1, output_token_logprobs=[[None, 5, None]], **END)], "log-probability"),
    ([event([5], 1, output_token_logprobs=[[-1.0, 6, None]], **END)], "log-probability"),
    ([event([5], 1, weight_versions=[], **END)], "weight versions"),
    ([event([5], 1, weight_versions=None, **END)], "weight versions"),
    ([event([5, 6], 2, weight_versions=[{"version": "a", "start": 1, "end": 2}], **END)], "weight versions"),
    ([event([5, 6], 2), event([5], 1, **END)], "went back"),
    ([event([5, 6, 7], 2, **END)], "output ids"),
    ([{"error": {"message": "it broke"}}], "it broke"),
    ([event([], 0, finish_reason={"type": "abort", "message": "too bad", "status_code": 500})], "too bad"),
    ([[1]], "malformed"),
]


@pytest.mark.parametrize(("events", "said"), REFUSED)
async def test_the_client_refuses(session: aiohttp.ClientSession, events: list[Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        await replay(session, events)


async def test_errors_and_absent_servers(session: aiohttp.ClientSession) -> None:
    with pytest.raises(EngineError, match="answered 503"):
        await replay(session, [], status=503)
    absent = EngineClient("http://127.0.0.1:9", session)
    assert not await absent.health()
    with pytest.raises(EngineError, match="could not be reached"):
        await absent.model_info()
