"""What real SGLang answers to the client: tokens, log-probabilities, versions, ends."""

import asyncio
from typing import Any

import pytest
from engines.episodes import PROMPT, Episode
from engines.servers_for_tests import TOLERANCE, reference, worst

from asearch.engines import client as module
from asearch.engines.client import EngineClient, VersionSpan
from asearch.engines.sglang.launch import STREAM_INTERVAL
from asearch.errors import EngineError
from tests.sglang.serving import CONTEXT_TOKENS, Server

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]
FREE: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 60, "ignore_eos": True}


class Request(Episode):
    """Follows one request, shorter than an episode's and with more time."""

    timeout_s = 120.0

    def __init__(self, client: EngineClient, prompt: list[int], rid: str, **params: Any) -> None:
        super().__init__(client, prompt, rid, **(FREE | params))

    def off(self, server: Server, version: str, start: int, end: int) -> float:
        """How far the log-probabilities are from those of HF's forward in fp32."""
        return worst(server.folder / version, self.prompt, self.ids, self.logprobs, start, end)


async def done(client: EngineClient, prompt: list[int], rid: str, **params: Any) -> Request:
    request = Request(client, prompt, rid, **params)
    await request.task
    return request


async def test_greedy_tokens_are_those_of_the_reference(server: Server, client: EngineClient) -> None:
    request = await done(client, PROMPT, "greedy", temperature=0.0)
    expected = reference(server.folder / "v1", PROMPT + request.ids)
    assert expected[len(PROMPT) - 1 : -1].argmax(-1).tolist() == request.ids
    assert request.off(server, "v1", 0, 60) <= TOLERANCE
    assert (request.chunks[-1].finish, request.spans()) == ("length", [VersionSpan("v1", 0, 60)])
    assert len(request.chunks) > 3


async def test_the_server_counts_what_it_samples_whether_it_is_streamed_or_not(server: Server, client: EngineClient) -> None:
    before = server.n_sampled()
    whole = await done(client, PROMPT, "counted")
    assert server.n_sampled() - before == len(whole.ids) == 60
    short = await done(client, PROMPT, "counted-short", max_new_tokens=1)
    left = Request(client, PROMPT, "counted-left", max_new_tokens=400)
    await left.reached(17)
    # Retracted and ended while it waits, it is not told what was sampled since it was told something.
    await client.pause()
    await client.abort("counted-left")
    await left.task
    await client.resume()
    assert (left.finish, left.spans()) == ("abort", [VersionSpan("v1", 0, len(left.ids))])
    assert await client.health(20.0)
    n_unsent = server.n_sampled() - before - sum(len(each.ids) for each in (whole, short, left))
    assert 0 <= n_unsent < STREAM_INTERVAL


SAMPLED = [{"top_k": -1}, {"temperature": 2.0}, {"temperature": 0.5, "top_p": 0.8}, {"temperature": 1.5, "top_k": 3}]


@pytest.mark.parametrize("params", SAMPLED)
async def test_logprobs_are_the_models_own_at_any_temperature(
    server: Server, client: EngineClient, params: dict[str, Any]
) -> None:
    # Names of their own: two seconds after a stream was closed SGLang ends whatever runs under its request's name then.
    mark = "-".join(map(str, params.values()))
    for request in await asyncio.gather(*(done(client, [*PROMPT, i], f"own-{mark}-{i}", **params) for i in range(4))):
        assert request.off(server, "v1", 0, 60) <= TOLERANCE
    await client.check_logprobs()


async def test_the_stop_text_that_matched_is_kept_in_the_tokens(server: Server, client: EngineClient) -> None:
    stop, stopped = 257, None
    for i in range(20):
        stopped = await done(client, [*PROMPT, i], f"stop-{i}", max_new_tokens=400, stop=["never there", "stop"])
        if stopped.chunks[-1].finish == "stop":
            break
    assert stopped is not None
    assert (stopped.chunks[-1].finish, stopped.chunks[-1].matched) == ("stop", "stop")
    assert stopped.ids[-1] in (stop, stop + 1)
    assert not {stop, stop + 1} & set(stopped.ids[:-1])
    assert stopped.spans() == [VersionSpan("v1", 0, len(stopped.ids))]
    assert stopped.off(server, "v1", 0, len(stopped.ids)) <= TOLERANCE


async def test_weights_change_in_flight_and_the_spans_are_exact(server: Server, client: EngineClient) -> None:
    requests = [Request(client, [*PROMPT, i], f"flight-{i}", max_new_tokens=300) for i in range(6)]
    await requests[-1].reached(40)
    await client.pause("retract")
    await client.update_weights(str(server.folder / "v2"), "v2")
    await client.resume()
    for request in requests:
        await request.task
        first, second = request.spans()
        assert (first.version, first.start, second.version, second.end) == ("v1", 0, "v2", 300)
        assert first.end == second.start
        for span in (first, second):
            assert request.off(server, span.version, span.start, span.end) <= TOLERANCE
    # The boundary is exact: the tokens beside it do not fit the other weights.
    ends = [request.spans()[0].end for request in requests]
    assert min(one.off(server, "v2", end - 1, end) for one, end in zip(requests, ends, strict=True)) > 10 * TOLERANCE
    assert min(one.off(server, "v1", end, end + 1) for one, end in zip(requests, ends, strict=True)) > 10 * TOLERANCE
    again = await done(client, [*PROMPT, 0], "after")
    assert again.spans() == [VersionSpan("v2", 0, 60)]
    assert again.off(server, "v2", 0, 60) <= TOLERANCE
    assert (await client.model_info())["weight_version"] == "v2"


async def test_what_is_held_back_too_long_is_had_by_ending_the_request(
    server: Server, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_HELD_S", 0.0)
    request = Request(client, PROMPT, "held", max_new_tokens=400)
    await request.reached(20)
    await client.pause("retract")
    await client.update_weights(str(server.folder / "v2"), "v2")
    await client.resume()
    await request.task
    assert request.chunks[-1].finish == "abort"
    first, second = request.spans()
    assert (first.version, second.version, second.end) == ("v1", "v2", len(request.ids))
    assert 20 < len(request.ids) < 400
    for span in (first, second):
        assert request.off(server, span.version, span.start, span.end) <= TOLERANCE


async def test_requests_wait_while_the_server_is_paused(server: Server, client: EngineClient) -> None:
    running = Request(client, PROMPT, "running", max_new_tokens=400)
    await running.reached(20)
    await client.pause("retract")
    waiting = Request(client, [*PROMPT, 1], "waiting")
    await asyncio.sleep(0.5)
    n_tokens = len(running.ids)
    await asyncio.sleep(0.5)
    assert len(running.ids) == n_tokens
    assert not waiting.ids
    assert not await client.is_ready()
    assert await client.has_model()
    await client.resume()
    for request in (running, waiting):
        await request.task
        assert request.off(server, "v1", 0, len(request.ids)) <= TOLERANCE
    assert (len(running.ids), len(waiting.ids)) == (400, 60)


async def test_an_aborted_request_says_what_it_had(server: Server, client: EngineClient) -> None:
    request = Request(client, PROMPT, "aborted", max_new_tokens=400)
    await request.reached(20)
    await client.abort("aborted")
    await client.abort("unknown")
    await request.task
    assert request.chunks[-1].finish == "abort"
    assert 20 <= len(request.ids) < 400
    assert request.spans() == [VersionSpan("v1", 0, len(request.ids))]
    assert request.off(server, "v1", 0, len(request.ids)) <= TOLERANCE


async def test_all_requests_may_be_ended_at_once(client: EngineClient) -> None:
    requests = [Request(client, [*PROMPT, i], f"all-{i}", max_new_tokens=400) for i in range(4)]
    for request in requests:
        await request.reached(1)
    await client.abort_all()
    for request in requests:
        await request.task
        assert request.chunks[-1].finish == "abort"


async def test_the_whole_context_is_served_and_no_more(client: EngineClient) -> None:
    full = await done(client, PROMPT, "full", max_new_tokens=CONTEXT_TOKENS - len(PROMPT))
    assert (len(full.ids), full.chunks[-1].finish) == (CONTEXT_TOKENS - len(PROMPT), "length")
    long = [i % 250 for i in range(CONTEXT_TOKENS - 10)]
    assert len((await done(client, long, "long", max_new_tokens=10)).ids) == 10
    with pytest.raises(EngineError, match="longer than the model's context length"):
        await done(client, PROMPT * 20, "too long")
    assert len((await done(client, PROMPT, "next")).ids) == 60


async def test_weights_that_cannot_be_loaded_change_nothing(server: Server, client: EngineClient) -> None:
    with pytest.raises(EngineError, match="update_weights_from_disk answered 400"):
        await client.update_weights(str(server.folder / "none"), "v9")
    request = await done(client, PROMPT, "unchanged")
    assert request.spans() == [VersionSpan("v1", 0, 60)]
    assert request.off(server, "v1", 0, 60) <= TOLERANCE


async def test_a_server_that_is_paused_is_excused_and_else_well(client: EngineClient) -> None:
    assert await client.health(20.0)
    await client.pause("retract")
    assert not await client.health(2.0)
    await client.resume()
    assert await client.health(20.0)
