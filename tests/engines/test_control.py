"""Pauses, weight updates in flight, aborts."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from models.models_for_tests import random_tensors, small_config

from asearch.engines.client import EngineClient, VersionSpan
from asearch.errors import EngineError
from asearch.models.weights import SINGLE_FILE, save_weights
from engines.episodes import LONG, PROMPT, Episode
from engines.servers_for_tests import TOLERANCE, Running, worst


async def counters_until(client: EngineClient, wanted: Callable[[dict[str, int]], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if wanted((await client.server_info())["internal_states"][0]):
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", ["in_place", None])
async def test_update_in_flight(server: Running, client: EngineClient, mode: str | None) -> None:
    """Tokens before and after match the forward of their own weights, and the spans say which are which."""
    episodes = [Episode(client, [*PROMPT, i], f"flight-{i}") for i in range(6)]
    await episodes[-1].reached(40)
    if mode is not None:
        await client.pause(mode)
        held = [len(episode.ids) for episode in episodes]
        await asyncio.sleep(0.05)
        held = [len(episode.ids) for episode in episodes]
        await asyncio.sleep(0.1)
        assert [len(episode.ids) for episode in episodes] == held
    await client.update_weights(str(server.folder / "v2"), "v2")
    if mode is not None:
        await client.resume()
    for episode in episodes:
        await episode.task
        first, second = episode.spans()
        assert (first.version, first.start, second.version, second.end) == ("v1", 0, "v2", 400)
        assert 40 - 20 <= first.end == second.start < 400
        for span in (first, second):
            folder = server.folder / span.version
            assert worst(folder, episode.prompt, episode.ids, episode.logprobs, span.start, span.end) <= TOLERANCE
    # The boundary is exact: the last token before it does not fit the other weights.
    ends = [episode.spans()[0].end for episode in episodes]
    before = [
        worst(server.folder / "v2", e.prompt, e.ids, e.logprobs, end - 1, end) for e, end in zip(episodes, ends, strict=True)
    ]
    after = [
        worst(server.folder / "v1", e.prompt, e.ids, e.logprobs, end, end + 1) for e, end in zip(episodes, ends, strict=True)
    ]
    assert min(before) > 10 * TOLERANCE
    assert min(after) > 10 * TOLERANCE
    assert (await client.model_info())["weight_version"] == "v2"


async def test_a_pause_without_update_changes_nothing(server: Running, client: EngineClient) -> None:
    plain = Episode(client, PROMPT, "plain", sampling_seed=5)
    await plain.task
    paused = Episode(client, PROMPT, "paused", sampling_seed=5)
    for n_tokens, mode in ((10, "retract"), (150, "in_place"), (250, "retract")):
        await paused.reached(n_tokens)
        await client.pause(mode)
        await client.resume()
    await paused.task
    assert paused.ids == plain.ids


async def test_pause_with_abort_ends_requests(client: EngineClient) -> None:
    episodes = [Episode(client, [*PROMPT, i], f"ends-{i}") for i in range(20)]
    await counters_until(client, lambda held: held["n_running"] + held["n_waiting"] == len(episodes))
    await client.pause("abort")
    for episode in episodes:
        await episode.task
        assert episode.chunks[-1].finish == "abort"


async def test_a_client_that_leaves_aborts_its_request(client: EngineClient) -> None:
    episode = Episode(client, PROMPT, "leaves")
    await episode.reached(5)
    episode.task.cancel()
    await counters_until(client, lambda held: held["n_running"] == 0)


async def test_leaving_the_iteration_aborts_too(client: EngineClient) -> None:
    stream = client.generate(PROMPT, LONG, rid="left", timeout_s=30)
    async for _ in stream:
        break
    await stream.aclose()
    await counters_until(client, lambda held: held["n_running"] == 0)


async def test_a_failed_update_leaves_everything_as_it_was(
    server: Running, client: EngineClient, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    tensors = random_tensors(server.config, 9)
    save_weights(tmp_path / "short", {name: t for name, t in tensors.items() if "layers.1.mlp" not in name})
    save_weights(tmp_path / "other", random_tensors(small_config(hidden_size=40), 9))
    bad = tensors | {"model.norm.weight": tensors["model.norm.weight"] * float("nan")}
    save_weights(tmp_path / "nan", bad)
    shutil.copytree(server.folder / "v2", tmp_path / "corrupt")
    raw = bytearray((tmp_path / "corrupt" / SINGLE_FILE).read_bytes())
    raw[-1] ^= 4
    (tmp_path / "corrupt" / SINGLE_FILE).write_bytes(raw)
    episode = Episode(client, PROMPT, "goes-on")
    await episode.reached(2)
    said = {"short": "lacks", "other": "do not fit", "nan": "not finite", "corrupt": "checksum", "absent": "neither"}
    for name, message in said.items():
        body = {"model_path": str(tmp_path / name), "weight_version": name}
        async with session.post(server.url + "/update_weights_from_disk", json=body) as response:
            reply = await response.json()
        assert (response.status, reply["success"]) == (400, False)
        assert message in reply["message"], reply
        with pytest.raises(EngineError, match=message):
            await client.update_weights(str(tmp_path / name), name)
    await episode.task
    assert episode.spans() == [VersionSpan("v1", 0, 400)]
    assert worst(server.folder / "v1", PROMPT, episode.ids, episode.logprobs, 0, 400) <= TOLERANCE
    assert (await client.model_info())["weight_version"] == "v1"


async def test_values_that_are_not_finite_end_the_request_only(server: Running, client: EngineClient, tmp_path: Path) -> None:
    """Weights may be finite and still overflow; the next good weights find nothing left of it."""
    tensors = {name: t * 1e25 if "proj" in name else t for name, t in random_tensors(server.config, 0).items()}
    save_weights(tmp_path, tensors)
    await client.update_weights(str(tmp_path), "huge")
    for i in range(3):
        with pytest.raises(EngineError, match="not finite"):
            await Episode(client, [*PROMPT, i], f"huge-{i}").task
    await client.update_weights(str(server.folder / "v1"), "v1")
    episodes = [Episode(client, [i, *PROMPT], f"fine-{i}", max_new_tokens=20) for i in range(20)]
    for episode in episodes:
        await episode.task
        assert worst(server.folder / "v1", episode.prompt, episode.ids, episode.logprobs, 0, 20) <= TOLERANCE


async def test_many_updates_under_load(server: Running, client: EngineClient) -> None:
    """More requests than may run, updates without pause: each token fits the weights that its span names."""
    episodes = [Episode(client, [*PROMPT, i], f"load-{i}", max_new_tokens=60 + 5 * i) for i in range(40)]
    for i in range(8):
        await asyncio.sleep(0.05)
        version = "v2" if i % 2 == 0 else "v1"
        await client.update_weights(str(server.folder / version), version)
    for episode in episodes:
        await episode.task
        for span in episode.spans():
            folder = server.folder / span.version
            assert worst(folder, episode.prompt, episode.ids, episode.logprobs, span.start, span.end) <= TOLERANCE
