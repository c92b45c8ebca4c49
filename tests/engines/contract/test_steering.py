"""Pauses, weight updates, aborts, flushes."""

import asyncio
from pathlib import Path

import pytest

from asearch.engines.client import EngineClient, VersionSpan
from asearch.errors import EngineError
from engines.contract.served import Served
from engines.episodes import PROMPT, Episode
from engines.servers_for_tests import TOLERANCE, worst


async def test_an_update_in_flight_has_exact_spans(server: Served, client: EngineClient) -> None:
    """Tokens before and after match the forward of their own weights, and the spans say which are which."""
    episodes = [Episode(client, [*PROMPT, i], f"flight-{i}") for i in range(6)]
    for episode in episodes:
        await episode.reached(10)
    await client.pause("retract")
    await client.update_weights(str(server.model("v2")), "v2")
    await client.resume()
    for episode in episodes:
        await episode.task
        first, second = episode.spans()
        assert (first.version, first.start, second.version, second.end) == ("v1", 0, "v2", 400)
        assert 10 <= first.end == second.start < 400
        for span in (first, second):
            folder, ids, logprobs = server.model(span.version), episode.ids, episode.logprobs
            assert worst(folder, episode.prompt, ids, logprobs, span.start, span.end) <= TOLERANCE
        # The boundary is exact: the tokens beside it do not fit the other weights.
        at = first.end
        assert worst(server.model("v2"), episode.prompt, episode.ids, episode.logprobs, at - 1, at) > 10 * TOLERANCE
        assert worst(server.model("v1"), episode.prompt, episode.ids, episode.logprobs, at, at + 1) > 10 * TOLERANCE
    assert (await client.model_info())["weight_version"] == "v2"


async def test_many_updates_under_load(server: Served, client: EngineClient) -> None:
    episodes = [Episode(client, [*PROMPT, i], f"load-{i}", max_new_tokens=60 + 10 * i) for i in range(16)]
    for i in range(6):
        await asyncio.sleep(0.1)
        version = "v2" if i % 2 == 0 else "v1"
        await client.pause("retract")
        await client.update_weights(str(server.model(version)), version)
        await client.resume()
    for episode in episodes:
        await episode.task
        assert episode.spans()[-1].end == len(episode.ids)
        for span in episode.spans():
            folder = server.model(span.version)
            assert worst(folder, episode.prompt, episode.ids, episode.logprobs, span.start, span.end) <= TOLERANCE


async def test_a_retract_without_update_changes_nothing(server: Served, client: EngineClient) -> None:
    plain = Episode(client, PROMPT, "plain", temperature=0)
    await plain.task
    paused = Episode(client, PROMPT, "paused", temperature=0)
    for n_tokens in (10, 150, 250):
        await paused.reached(n_tokens)
        await client.pause("retract")
        await client.resume()
    await paused.task
    assert paused.ids == plain.ids
    assert paused.spans() == [VersionSpan("v1", 0, 400)]
    assert worst(server.model("v1"), PROMPT, paused.ids, paused.logprobs, 0, 400) <= TOLERANCE


async def test_requests_wait_while_paused(client: EngineClient) -> None:
    running = Episode(client, PROMPT, "runs")
    await running.reached(5)
    await client.pause("retract")
    episode = Episode(client, PROMPT, "waits", max_new_tokens=3)
    await asyncio.sleep(0.3)
    held = len(running.ids)
    await asyncio.sleep(0.2)
    assert not episode.chunks and len(running.ids) == held
    await client.flush_cache()
    await client.resume()
    await episode.task
    assert len(episode.ids) == 3
    await running.task
    assert len(running.ids) == 400


async def test_an_abort_returns_what_there_is(server: Served, client: EngineClient) -> None:
    episode, other = Episode(client, PROMPT, "one"), Episode(client, PROMPT, "other")
    await episode.reached(5)
    await client.abort("one")
    await client.abort("unknown")
    await episode.task
    assert episode.finish == "abort"
    n_tokens = len(episode.ids)
    assert 5 <= n_tokens < 400
    assert episode.spans() == [VersionSpan("v1", 0, n_tokens)]
    assert worst(server.model("v1"), PROMPT, episode.ids, episode.logprobs, 0, n_tokens) <= TOLERANCE
    await other.task
    assert (other.finish, len(other.ids)) == ("length", 400)


async def test_an_abort_of_all(client: EngineClient) -> None:
    episodes = [Episode(client, [*PROMPT, i], f"all-{i}") for i in range(5)]
    for episode in episodes:
        await episode.reached(2)
    await client.abort_all()
    for episode in episodes:
        await episode.task
        assert episode.finish == "abort" and 2 <= len(episode.ids) < 400


async def test_a_flush_is_refused_while_requests_run(client: EngineClient) -> None:
    episode = Episode(client, PROMPT, "runs")
    await episode.reached(2)
    with pytest.raises(EngineError, match="answered 400"):
        await client.flush_cache()
    await client.abort("runs")
    await episode.task
    await flushed(client)


async def flushed(client: EngineClient) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.flush_cache()
            except EngineError:
                await asyncio.sleep(0.05)


async def test_a_failed_update_keeps_the_weights(server: Served, client: EngineClient, tmp_path: Path) -> None:
    """Of a folder that is not there. SGLang dies of one that it begins to read and cannot use: it goes back by reading the
    same folder again. So folders are checked before a server is told of them."""
    await client.pause("retract")
    with pytest.raises(EngineError):
        await client.update_weights(str(tmp_path / "absent"), "absent")
    await client.resume()
    episode = Episode(client, PROMPT, "kept", max_new_tokens=20)
    await episode.task
    assert episode.spans() == [VersionSpan("v1", 0, 20)]
    assert worst(server.model("v1"), PROMPT, episode.ids, episode.logprobs, 0, 20) <= TOLERANCE
    assert (await client.model_info())["weight_version"] == "v1"
