"""Versions that come as differences: the same folder as a whole pull brings, from a real source, and whole where that fails."""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asearch.engines.client import EngineClient
from asearch.errors import ChecksumError, TransferError, WeightsGoneError
from asearch.models.weights import MANIFEST_FILE
from asearch.weights import delta_pulling, delta_serving
from asearch.weights.checking import check_weights
from asearch.weights.delta_pulling import DeltaPull, NoDeltaError
from asearch.weights.delta_serving import Deltas
from asearch.weights.pulling import MAX_TRIES, Pull, Pulled
from asearch.weights.ranges import Connection, NotReadyError
from schemas.records import WeightManifest
from tests.engines.servers_for_tests import TOLERANCE, Running, worst
from tests.weights.folders import Network, Source, described, kill_puller, serving, write_folder
from tests.weights.scene import Scene
from tests.weights.test_pulling import same
from tests.weights.test_transfers import PROMPT, generated

PULL = """
import sys, threading, msgspec
from pathlib import Path
from asearch.weights.delta_pulling import DeltaPull
from asearch.weights.ranges import Origin
from schemas.records import WeightManifest
manifest = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=WeightManifest)
root = Path(sys.argv[3])
DeltaPull(manifest, Origin(sys.argv[2], "a-token", 5.0), root, 2, threading.Event(), root / "v1.0").run()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with serving(tmp_path_factory.mktemp("source")) as held:
        yield held


@pytest.fixture(scope="module")
def versions(source: Source) -> list[WeightManifest]:
    """v1.1 and v1.2 each differ in a few elements from the one before, v1.3 in all."""
    first = write_folder(source.root / "v1.0")
    near = [changed(first, source.root / "v1.1", 0.02), changed(first, source.root / "v1.2", 0.05)]
    return [first, *near, write_folder(source.root / "v1.3", seed=9)]


@pytest.fixture(autouse=True)
def offered(source: Source, versions: list[WeightManifest]) -> None:
    source.offer(*versions)


@pytest.fixture(autouse=True)
def several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions as small as these would be one run."""
    monkeypatch.setattr(delta_pulling, "RUN_BYTES", 1 << 16)


def touch_some(file: Path, fraction: float) -> None:
    """Change this share of the elements of every tensor."""
    rng = np.random.default_rng(5)
    tensors = load_file(file)
    for name, tensor in tensors.items():
        tensors[name] = np.where(rng.random(tensor.shape) < fraction, tensor * np.float32(1.001) + np.float32(1e-4), tensor)
    save_file(tensors, file, metadata={"format": "pt"})


def changed(of: WeightManifest, folder: Path, fraction: float) -> WeightManifest:
    shutil.copytree(of.path, folder)
    for shard in of.shards:
        touch_some(folder / shard.name, fraction)
    return described(folder)


def whole(manifest: WeightManifest, source: Source, root: Path) -> Pulled:
    return Pull(manifest, source.origin(), root, 2, threading.Event()).run()


def by_delta(manifest: WeightManifest, source: Source, base: Path, port: int | None = None, **given: Any) -> Pulled:
    pull = DeltaPull(manifest, source.origin(port), base.parent, 2, threading.Event(), base, **given)
    try:
        return pull.run()
    finally:
        assert sorted(path.name for path in base.parent.parent.iterdir()) == [base.parent.name], "nothing is written elsewhere"


@pytest.fixture
def base(source: Source, versions: list[WeightManifest], tmp_path: Path) -> Path:
    """The first version, pulled."""
    return whole(versions[0], source, tmp_path / "pulled").folder


def size(manifest: WeightManifest) -> int:
    return sum(shard.size_bytes for shard in manifest.shards)


def test_a_version_comes_as_a_difference(source: Source, versions: list[WeightManifest], base: Path) -> None:
    pulled = by_delta(versions[1], source, base)
    same(pulled.folder, versions[1])
    same(base, versions[0])
    assert check_weights(pulled.folder, versions[1]) > size(versions[1])
    assert 0.02 * size(versions[1]) < pulled.n_bytes < 0.04 * size(versions[1])


def test_a_version_may_be_left_out(source: Source, versions: list[WeightManifest], base: Path) -> None:
    pulled = by_delta(versions[2], source, base)
    same(pulled.folder, versions[2])
    assert pulled.n_bytes < 0.1 * size(versions[2])
    back = by_delta(versions[0], source, pulled.folder)
    same(back.folder, versions[0])


def open_deltas(pid: int, root: Path) -> int:
    """Files without a name that a process keeps in a folder."""
    targets = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return sum(target.startswith(str(root)) and target.endswith("(deleted)") for target in targets)


def test_many_ask_and_it_is_made_once(source: Source, versions: list[WeightManifest], tmp_path: Path) -> None:
    bases = [whole(versions[0], source, tmp_path / str(n) / "pulled").folder for n in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for pulled in threads.map(lambda base: by_delta(versions[1], source, base), bases):
            same(pulled.folder, versions[1])
    assert 1 <= open_deltas(source.process.pid, source.root) <= delta_serving.MAX_KEPT
    assert sorted(path.name for path in source.root.iterdir()) == ["v1.0", "v1.1", "v1.2", "v1.3"]


def test_what_differs_too_much_is_not_given(source: Source, versions: list[WeightManifest], base: Path) -> None:
    with pytest.raises(NoDeltaError, match=r"no delta from v1\.0 to v1\.3"):
        by_delta(versions[3], source, base)


def test_an_old_version_that_the_host_has_no_more_has_no_delta(
    source: Source, versions: list[WeightManifest], base: Path
) -> None:
    source.offer(versions[0])
    with pytest.raises(WeightsGoneError):
        by_delta(versions[1], source, base)
    deltas, both = Deltas(source.root), {f"v1.{n}": [shard.name for shard in versions[n].shards] for n in (0, 1)}

    def found(*names: str) -> bool:
        file = deltas.open("v1.0", "v1.1", lambda name: both[name] if name in names else (), 20)
        if file is not None:
            file.close()
        return file is not None

    assert not found("v1.1") and not found("v1.0")
    assert found("v1.0", "v1.1")
    assert found("v1.1"), "who is pulling it goes on when the old version is deleted"
    assert not found("v1.0")
    assert open_deltas(os.getpid(), source.root) == 1
    deltas.forget(lambda _: ())
    assert open_deltas(os.getpid(), source.root) == 0


def test_an_old_copy_that_is_spoiled_is_found_out(source: Source, versions: list[WeightManifest], base: Path) -> None:
    shard = versions[0].shards[1]
    with (base / shard.name).open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(ChecksumError, match=r"layer\.1\.\d does not come out of the delta as it was announced"):
        by_delta(versions[1], source, base)
    os.truncate(base / shard.name, shard.size_bytes - 100_000)
    with pytest.raises(ChecksumError):
        by_delta(versions[1], source, base)
    assert not (base.parent / "v1.1").exists()
    same(whole(versions[1], source, base.parent).folder, versions[1])


def test_a_delta_that_changes_on_the_way_is_found_out(source: Source, versions: list[WeightManifest], base: Path) -> None:
    def flip(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if len(data) == 1 << 14 else data

    network = Network(source.port, flip)
    with pytest.raises(ChecksumError):
        by_delta(versions[2], source, base, network.port)
    assert not (base.parent / "v1.2").exists()


def cut_once(after: int) -> Callable[[bytes], bytes | None]:
    done: list[int] = []

    def touch(data: bytes) -> bytes | None:
        if len(data) > after and not done:
            done.append(1)
            return None
        return data

    return touch


def test_a_connection_that_is_cut_costs_little(source: Source, versions: list[WeightManifest], base: Path) -> None:
    network = Network(source.port, cut_once(10_000))
    pulled = by_delta(versions[2], source, base, network.port)
    assert network.n_connections > 2
    same(pulled.folder, versions[2])


def test_a_source_that_is_gone_is_given_up_by_every_connection_at_once(
    source: Source, versions: list[WeightManifest], base: Path
) -> None:
    def swallow(data: bytes) -> bytes | None:
        """The head passes, which is short; what follows does not."""
        return None if len(data) > 1000 else data

    network = Network(source.port, swallow)
    with pytest.raises(TransferError, match="does not send"):
        by_delta(versions[2], source, base, network.port)
    assert network.n_connections <= 2 * MAX_TRIES + 2


def test_a_puller_that_is_killed_begins_anew(source: Source, versions: list[WeightManifest], base: Path) -> None:
    kill_puller(PULL, source, versions[2], base.parent, after_bytes=60_000, pause_s=0.2)
    assert (base.parent / "v1.2.partial").is_dir() and not (base.parent / "v1.2").exists()
    same(by_delta(versions[2], source, base).folder, versions[2])
    assert sorted(path.name for path in base.parent.iterdir()) == ["v1.0", "v1.2"]


def test_only_what_is_announced_has_a_delta(source: Source, versions: list[WeightManifest]) -> None:
    (source.root / "v0.1").symlink_to(source.root / "v1.0")
    try:
        for path in (
            "/v1.1/delta-from-..",
            "/../delta-from-v1.0",
            "/v1.1/delta-from-v0.1",
            "/v1.1/delta-from-",
            "/v1.1/delta-from-/",
        ):
            with Connection(source.origin()) as connection, pytest.raises(WeightsGoneError):
                connection.read(path, 0, 8)
    finally:
        (source.root / "v0.1").unlink()


def a_little_trained(model: Path, folder: Path) -> Path:
    """A model that differs in two percent of its elements; without checksums of its own, which would be the old ones."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns(MANIFEST_FILE))
    touch_some(folder / "model.safetensors", 0.02)
    return folder


class Slow:
    """Makes nothing before it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.n_made = 0
        real = delta_serving.write_delta

        def write(*given: Any) -> bool:
            self.n_made += 1
            assert self.go.wait(20)
            return real(*given)

        monkeypatch.setattr(delta_serving, "write_delta", write)


def test_deltas_are_made_beside_serving_and_bounded(
    source: Source, versions: list[WeightManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    deltas = Deltas(source.root)
    listed = {f"v1.{n}": [shard.name for shard in versions[n].shards] for n in range(4)}

    def ask(old: int, new: int, wait_s: float = 0.0) -> bool:
        file = deltas.open(f"v1.{old}", f"v1.{new}", lambda name: listed.get(name, ()), wait_s)
        if file is not None:
            file.close()
        return file is not None

    for pair in ((0, 1), (0, 2), (1, 2)):
        with pytest.raises(NotReadyError):
            ask(*pair)
    assert not ask(2, 1), "there is no place for a fourth"
    slow.go.set()
    assert ask(1, 2, 20) and ask(0, 1) and slow.n_made == 3
    assert ask(2, 1, 20), "the oldest goes"
    listed.pop("v1.2")
    assert not ask(0, 2) and ask(0, 1, 20)


def test_a_delta_that_cannot_be_made_is_none_and_the_next_one_is(
    source: Source, versions: list[WeightManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        raise MemoryError("no room")

    deltas = Deltas(source.root)
    listed = {f"v1.{n}": [shard.name for shard in versions[n].shards] for n in range(4)}
    with monkeypatch.context() as patch:
        patch.setattr(delta_serving, "write_delta", fail)
        for new in range(1, 4):
            assert deltas.open("v1.0", f"v1.{new}", lambda name: listed.get(name, ()), 20) is None
    file = deltas.open("v1.1", "v1.2", lambda name: listed.get(name, ()), 20)
    assert file is not None
    file.close()


async def test_an_engine_serves_what_came_as_a_difference(server: Running, client: EngineClient, tmp_path: Path) -> None:
    near = a_little_trained(server.folder / "v1", tmp_path / "near")
    async with asyncio.timeout(40), Scene(tmp_path, "http", delta="always") as scene:
        engine = scene.engine(client)
        loaded = 0.0
        for turn, model in enumerate((server.folder / "v1", near, server.folder / "v1", server.folder / "v2")):
            version = await scene.publish(model)
            await engine.serves(version)
            ids, logprobs, told = await generated(client, f"delta-{turn}")
            assert told == {version}
            assert worst(model, PROMPT, ids, logprobs, 0, 20) <= TOLERANCE
            gauges = engine.follower.gauges()
            n_bytes, loaded = gauges["n_transferred_bytes"] - loaded, gauges["n_transferred_bytes"]
            assert (n_bytes < 0.1 * (near / "model.safetensors").stat().st_size) == (turn in (1, 2))
            assert (gauges["n_deltas"], gauges["n_deltas_refused"]) == (min(turn, 2), int(turn == 3))
        assert gauges["n_deltas_failed"] == 0


async def test_an_engine_whose_old_copy_is_spoiled_pulls_the_version_whole(
    server: Running, client: EngineClient, tmp_path: Path
) -> None:
    near = a_little_trained(server.folder / "v1", tmp_path / "near")
    async with asyncio.timeout(40), Scene(tmp_path, "http", delta="always") as scene:
        engine = scene.engine(client)
        first = await scene.publish(server.folder / "v1")
        await engine.serves(first)
        with (tmp_path / "weights" / "pulled-engine-0" / f"v{first}" / "model.safetensors").open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"\x01")
        version = await scene.publish(near)
        await engine.serves(version)
        gauges = engine.follower.gauges()
        assert (gauges["n_deltas"], gauges["n_deltas_failed"], gauges["n_transfers_failed"]) == (0, 1, 0)
        ids, logprobs, told = await generated(client, "spoiled-base")
        assert told == {version}
        assert worst(near, PROMPT, ids, logprobs, 0, 20) <= TOLERANCE


def test_stopping_ends_the_wait_for_a_delta(source: Source, versions: list[WeightManifest], base: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(TransferError, match="stopped"):
        DeltaPull(versions[1], source.origin(), base.parent, 2, stop, base).run()
