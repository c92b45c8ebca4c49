"""The contract of every way for weights to come to an engine, with a real server at the end of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from actors.runtime.platform import SystemPlatform
from actors.runtime.transfer.broadcast import BroadcastReceiver
from actors.runtime.transfer.transfer import SpoiledServerError, Transfer
from asearch.engines.client import EngineClient
from asearch.errors import EngineError, StorageError
from asearch.weights.layout import Extent, TensorPlace
from schemas.events import PolicyPublished
from schemas.records import Broadcast, Version, WeightManifest
from tests.engines.servers_for_tests import TOLERANCE, Running, worst
from tests.weights.scene import Scene

WAYS = ("shared", "http", "broadcast")
PROMPT = [3, 1, 4, 1, 5]


async def generated(client: EngineClient, rid: str, n: int = 20) -> tuple[list[int], list[float], set[str]]:
    """Greedy tokens, their log-probabilities, the versions that the server tells."""
    ids: list[int] = []
    logprobs: list[float] = []
    versions: set[str] = set()
    parameters = {"max_new_tokens": n, "temperature": 0.0, "ignore_eos": True}
    async for chunk in client.generate(PROMPT, parameters, rid=rid, timeout_s=60):
        ids += chunk.ids
        logprobs += chunk.logprobs
        versions |= {span.version for span in chunk.versions}
    return ids, logprobs, versions


@pytest.mark.parametrize("way", WAYS)
async def test_versions_arrive_whole_under_their_names(way: str, server: Running, client: EngineClient, tmp_path: Path) -> None:
    async with Scene(tmp_path, way) as scene:
        engine = scene.engine(client)
        if way == "broadcast":
            await scene.group_stands()
        for model in ("v1", "v2", "v1"):
            version = await scene.publish(server.folder / model)
            await engine.serves(version)
            ids, logprobs, versions = await generated(client, f"{way}-{version}")
            assert versions == {version}
            assert worst(server.folder / model, PROMPT, ids, logprobs, 0, 20) <= TOLERANCE
        gauges = engine.follower.gauges()
        assert gauges["n_updates"] == 3 and 0 < gauges["pause_p50_s"] <= gauges["pause_p99_s"]
        if way == "broadcast":
            assert gauges["n_broadcasts"] >= 2 and gauges["n_broadcasts_failed"] == 0, gauges
        if way == "http":
            assert sorted(path.name for path in (tmp_path / "weights" / "pulled-engine-0").iterdir()) == ["v1.1", "v1.2"]


@pytest.mark.parametrize("way", WAYS)
async def test_weights_that_are_not_those_announced_are_never_served(
    way: str, server: Running, client: EngineClient, tmp_path: Path
) -> None:
    async with Scene(tmp_path, way) as scene:
        engine = scene.engine(client)
        if way == "broadcast":
            await scene.group_stands()
        good = await scene.publish(server.folder / "v1")
        await engine.serves(good)
        await scene.publish(server.folder / "v2", spoil=True)
        if way == "broadcast":
            # What the server has received may not be served, and the folder has nothing better: it stays suspended.
            with pytest.raises(Exception, match="not to be had otherwise"):
                await scene.tasks[-1]
            assert not scene.engines[0].follower.is_loading
            await client.update_weights(str(server.folder / "v1"), "v1")
            await client.resume()
            scene.tasks.pop()
            return
        while not engine.follower.gauges()["n_transfers_failed"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert (await generated(client, f"{way}-still"))[2] == {good}
        newer = await scene.publish(server.folder / "v2")
        await engine.serves(newer)
        assert engine.loaded == [good, newer]


@pytest.mark.parametrize("way", WAYS)
async def test_of_versions_in_quick_succession_the_newest_ends_up_served(
    way: str, server: Running, client: EngineClient, tmp_path: Path
) -> None:
    async with Scene(tmp_path, way) as scene:
        engine = scene.engine(client)
        if way == "broadcast":
            await scene.group_stands()
        versions = [await scene.publish(server.folder / model) for model in ("v1", "v2", "v1", "v2")]
        scene.delete(versions[0])
        await engine.serves(versions[-1])
        ids, logprobs, told = await generated(client, f"{way}-quick")
        assert told == {versions[-1]}
        assert worst(server.folder / "v2", PROMPT, ids, logprobs, 0, 20) <= TOLERANCE
        assert engine.loaded == sorted(engine.loaded)


class Late:
    """A server that joins a group once `first` is done."""

    def __init__(self, client: EngineClient, first: Callable[[], Awaitable[None]]) -> None:
        self._client, self._first = client, first

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    async def join_update_group(self, *given: object) -> None:
        await self._first()
        await self._client.join_update_group(*given)  # pyright: ignore[reportArgumentType]


async def test_a_version_that_is_deleted_while_it_is_broadcast_gives_way_to_the_newest(
    server: Running, client: EngineClient, tmp_path: Path
) -> None:
    newest: list[str] = []
    async with Scene(tmp_path, "broadcast") as scene:

        async def replaced() -> None:
            newest.append(await scene.publish(server.folder / "v2"))
            scene.delete("1.0")

        engine = scene.engine(Late(client, replaced))
        await scene.group_stands()
        await scene.publish(server.folder / "v1")
        while not newest:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        async with asyncio.timeout(40):
            await engine.serves(newest[0])
        ids, logprobs, told = await generated(client, "instead")
        assert told == set(newest) == set(engine.loaded)
        assert worst(server.folder / "v2", PROMPT, ids, logprobs, 0, 20) <= TOLERANCE
        assert engine.follower.gauges()["n_broadcasts_failed"] == 1


async def test_an_engine_that_was_started_again_does_not_wait_for_what_was_sent_before(
    server: Running, client: EngineClient, tmp_path: Path
) -> None:
    async with Scene(tmp_path, "broadcast") as scene:
        scene.pid += 1
        engine = scene.engine(client)
        await scene.group_stands()
        await engine.serves(await scene.publish(server.folder / "v2"))
        gauges = engine.follower.gauges()
        assert (gauges["n_broadcasts"], gauges["n_broadcasts_failed"]) == (0, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_late_joiner_takes_the_newest_alone(way: str, server: Running, client: EngineClient, tmp_path: Path) -> None:
    async with Scene(tmp_path, way) as scene:
        old = await scene.publish(server.folder / "v1")
        gone = await scene.publish(server.folder / "v1")
        newest = await scene.publish(server.folder / "v2")
        scene.delete(old)
        scene.delete(gone)
        engine = scene.engine(client)
        await engine.serves(newest)
        assert engine.loaded == [newest]


async def test_a_source_that_dies_is_started_again_where_it_was(server: Running, client: EngineClient, tmp_path: Path) -> None:
    async with Scene(tmp_path, "http") as scene:
        assert scene.source is not None and scene.source._process is not None
        scene.spawn(scene.source.watch(), "source")
        url = scene.source.url
        scene.source._process.kill()
        engine = scene.engine(client)
        await engine.serves(await scene.publish(server.folder / "v2"))
        assert scene.source.url == url
        token = (tmp_path / "weights.token").read_text()
        assert (tmp_path / "weights.token").stat().st_mode & 0o777 == 0o600
        command = Path(f"/proc/{scene.source._process.pid}/cmdline").read_text()
        assert "serving" in command and token not in command


async def test_a_source_that_is_stopped_stays_away(tmp_path: Path) -> None:
    async with Scene(tmp_path, "http") as scene:
        assert scene.source is not None
        watch = asyncio.create_task(scene.source.watch())
        await asyncio.sleep(0)
        first = scene.source._process
        await scene.source.stop()
        async with asyncio.timeout(5):
            await watch
        assert scene.source._process is first
        assert not list(tmp_path.glob("*.port"))


async def test_a_pulled_folder_that_was_spoiled_is_pulled_again(server: Running, client: EngineClient, tmp_path: Path) -> None:
    async with Scene(tmp_path, "http") as scene:
        engine = scene.engine(client)
        version = await scene.publish(server.folder / "v2")
        await engine.serves(version)
        folder = tmp_path / "weights" / "pulled-engine-0" / f"v{version}"
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-3, 2)
            file.write(b"\x01")
        engine.loaded.clear()
        engine.follower.attach(client)
        async with asyncio.timeout(20):
            await engine.serves(version)
        ids, logprobs, told = await generated(client, "spoiled")
        assert told == {version}
        assert worst(server.folder / "v2", PROMPT, ids, logprobs, 0, 20) <= TOLERANCE


async def test_a_refused_broadcast_says_why(client: EngineClient) -> None:
    for _ in range(2):  # and leaves no update open
        with pytest.raises(EngineError, match="join the group"):
            await client.receive_weights("nobodys", [("w", "float32", [1])], "v9", 1.0)


class Full:
    """A way of weights that finds the disk full."""

    async def prepare(self, *_: object) -> None:
        raise StorageError("no space left")

    def gauges(self) -> dict[str, float]:
        return {}


async def test_a_server_with_spoiled_weights_does_not_go_on_where_the_disk_is_full(client: EngineClient) -> None:
    async def headers(_: WeightManifest) -> list[TensorPlace]:
        return [TensorPlace(Extent("w", 0, 4), "F32", (1,))]

    broadcast = Broadcast(group="g", address="127.0.0.1", port=1, members=["engine-0"], backend="gloo", timeout_s=1.0)
    manifest = WeightManifest(path="/nowhere/v1.1", shards=[], broadcast=broadcast)
    published = PolicyPublished(id="p", model="policy", version=Version(lineage=1, step=1), parent=None, manifest=manifest)
    receiver = BroadcastReceiver(SystemPlatform(0), "engine-0", cast("Transfer", Full()), headers)
    for _ in range(2):
        with pytest.raises(StorageError):
            await receiver.prepare(client, published)
        assert receiver.gauges()["n_broadcasts_failed"] == 1, "what is sent once is not waited for twice"
    receiver._tensors = [("w", "float32", [1])]
    with pytest.raises(SpoiledServerError, match="no space left"):
        await receiver.load(client, published)


class Mute:
    """A server that joins a group and then never answers."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    async def update_weights(self, path: str, version: str) -> None:
        self.paths.append(path)

    async def pause(self, mode: str = "retract") -> None:
        """It does not matter."""

    async def resume(self) -> None:
        """It does not matter."""

    async def join_update_group(self, *_: object) -> None:
        await asyncio.sleep(3600)


@pytest.mark.slow
async def test_a_member_that_does_not_answer_holds_up_nobody_for_long(
    server: Running, client: EngineClient, tmp_path: Path
) -> None:
    async with Scene(tmp_path, "broadcast", broadcast_timeout_s=2.0) as scene:
        engine, mute = scene.engine(client), scene.engine(Mute(client), "engine-1")
        await scene.group_stands()
        version = await scene.publish(server.folder / "v2")
        await engine.serves(version)
        assert mute.loaded == []
        gauges = engine.follower.gauges()
        assert (gauges["n_broadcasts"], gauges["n_broadcasts_failed"]) == (0, 1)
        assert scene.broadcaster is not None and scene.broadcaster.n_failed == 1
        ids, logprobs, told = await generated(client, "after-mute")
        assert told == {version}
        assert worst(server.folder / "v2", PROMPT, ids, logprobs, 0, 20) <= TOLERANCE
        scene.engines.remove(mute)
        scene.broadcaster._seen_s.pop("engine-1")
        await scene.group_stands()
        await engine.serves(await scene.publish(server.folder / "v1"))
        assert engine.follower.gauges()["n_broadcasts"] == 1
