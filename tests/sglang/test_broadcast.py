"""Real SGLang as a member of a broadcast: exact in flight, and never serving what was not announced."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from engines.servers_for_tests import TOLERANCE, worst

from actors.runtime.transfer import broadcasting
from asearch.engines.client import EngineClient
from asearch.weights.sglang import held_weights
from schemas.records import Version, WeightManifest
from tests.sglang.serving import Server
from tests.weights.scene import NAMES, Engine, Scene

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]
PROMPT = list(range(3, 40))


@dataclass
class Flight:
    """What one request brought."""

    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    spans: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])

    async def fly(self, client: EngineClient, rid: str, n: int) -> "Flight":
        parameters = {"max_new_tokens": n, "temperature": 1.0, "ignore_eos": True}
        async for chunk in client.generate(PROMPT, parameters, rid=rid, timeout_s=120):
            self.ids += chunk.ids
            self.logprobs += chunk.logprobs
            self.spans += [(span.version, span.start, span.end) for span in chunk.versions]
        return self

    def check(self, folders: dict[str, Path]) -> None:
        """Each token is of the weights whose version it is said to be, and all of `folders` occur."""
        at = 0
        for version, start, end in self.spans:
            assert start == at < end
            assert worst(folders[version], PROMPT, self.ids, self.logprobs, start, end) <= TOLERANCE
            at = end
        assert at == len(self.ids) > 0
        assert {version for version, _, _ in self.spans} == folders.keys()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.02)


async def serves(client: EngineClient, version: str, folder: Path) -> None:
    (await Flight().fly(client, f"after-{version}", 20)).check({version: folder})


async def test_what_is_told_of_parameters_is_what_was_foretold(server: Server, client: EngineClient) -> None:
    told = await client.held_checksums()
    assert told == held_weights(server.folder / "v1", NAMES).parameters
    await client.update_weights(str(server.folder / "v2"), "v2")
    assert await client.held_checksums() == held_weights(server.folder / "v2", NAMES).parameters != told


async def test_a_broadcast_parts_a_request_in_flight_exactly(server: Server, client: EngineClient, tmp_path: Path) -> None:
    one, two = server.folder / "v1", server.folder / "v2"
    async with Scene(tmp_path, "broadcast", "sglang") as scene:
        engine = scene.engine(client)
        await scene.group_stands()
        first = await scene.publish(one)
        await engine.serves(first)
        flight = Flight()
        flying = asyncio.create_task(flight.fly(client, "flight", 400))
        await until(lambda: len(flight.ids) >= 20)
        second = await scene.publish(two)
        await engine.serves(second)
        assert not flying.done()
        await flying
        assert len(flight.ids) == 400
        flight.check({first: one, second: two})
        await serves(client, second, two)
        gauges = engine.follower.gauges()
        assert (gauges["n_broadcasts"], gauges["n_broadcasts_failed"]) == (2, 0)
        assert not (tmp_path / "weights" / "pulled-engine-0").exists()


async def test_what_a_broadcast_does_not_bring_as_announced_is_pulled(
    server: Server, client: EngineClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcasting, "RETRY_S", 0.2)
    async with Scene(tmp_path, "broadcast", "sglang") as scene:
        engine = scene.engine(client)
        await scene.group_stands()
        await _others_are_sent(scene, engine, client, server.folder)
        await _the_group_that_was_left_is_not_joined_again(scene, engine, client, server.folder)
        await scene.group_stands()
        await _nobody_sends(scene, engine, client, server.folder)
        await scene.group_stands()
        await _the_folder_is_spoilt(scene, engine, client, server.folder)


async def _others_are_sent(scene: Scene, engine: Engine, client: EngineClient, folder: Path) -> None:
    """SGLang takes all of it without complaint; its checksums tell."""
    broadcaster = scene.broadcaster
    assert broadcaster is not None
    send = broadcaster.send

    def send_others(manifest: WeightManifest, version: Version) -> None:
        send(msgspec.structs.replace(manifest, path=str(folder / "v2")), version)

    broadcaster.send = send_others
    version = await scene.publish(folder / "v1")
    await engine.serves(version)
    broadcaster.send = send
    assert engine.follower.gauges()["n_broadcasts_failed"] == 1
    assert broadcaster.n_sent == 1
    await serves(client, version, folder / "v1")


async def _the_group_that_was_left_is_not_joined_again(scene: Scene, engine: Engine, client: EngineClient, folder: Path) -> None:
    """The trainer knows nothing of it yet; SGLang would wait for half an hour."""
    assert scene.broadcaster is not None and scene.broadcaster._sender is not None
    left = scene.broadcaster._sender.group
    version = await scene.publish(folder / "v2")
    await engine.serves(version)
    assert engine.follower.gauges()["n_broadcasts_failed"] == 2
    await serves(client, version, folder / "v2")
    await until(lambda: scene.broadcaster is not None and scene.broadcaster.n_failed == 1)
    await scene.group_stands()
    assert scene.broadcaster._sender.group != left


async def _nobody_sends(scene: Scene, engine: Engine, client: EngineClient, folder: Path) -> None:
    """The sender dies once SGLang waits for it."""
    broadcaster = scene.broadcaster
    assert broadcaster is not None and broadcaster._sender is not None
    send, process = broadcaster.send, broadcaster._sender.process

    def kill(*_: object) -> None:
        asyncio.get_running_loop().call_later(1.0, process.kill)

    broadcaster.send = kill
    version = await scene.publish(folder / "v2")
    await engine.serves(version)
    broadcaster.send = send
    assert engine.follower.gauges()["n_broadcasts_failed"] == 3
    await serves(client, version, folder / "v2")


async def _the_folder_is_spoilt(scene: Scene, engine: Engine, client: EngineClient, folder: Path) -> None:
    """Neither way brings what was announced: SGLang goes on as it was, and takes the next."""
    before = engine.loaded[-1]
    spoilt = await scene.publish(folder / "v1", spoil=True)
    await until(lambda: engine.follower.gauges()["n_transfers_failed"] > 0)
    await serves(client, before, folder / "v2")
    newer = await scene.publish(folder / "v1")
    await engine.serves(newer)
    await serves(client, newer, folder / "v1")
    assert spoilt not in engine.loaded
