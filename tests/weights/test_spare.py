"""The pages of a superseded folder are written over by the next pull, and never those that a server may still read."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from actors.runtime.platform import SystemPlatform
from actors.runtime.transfer.pulled import HttpPull
from asearch.errors import EngineError, TransferError
from asearch.weights import pulling
from asearch.weights.pulling import PARTIAL, Pull, Pulled
from asearch.weights.ranges import Origin
from schemas.events import PolicyPublished
from schemas.records import Version, WeightManifest
from tests.weights.folders import Network, Source, serving, write_folder

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    monkeypatch.setattr(pulling, "RUN_BYTES", 1 << 16)
    monkeypatch.setattr(pulling, "BLOCK_BYTES", 1 << 18)
    with serving(tmp_path) as held:
        yield held


def pull(manifest: WeightManifest, origin: Origin, root: Path, spare: Path | None = None) -> Pulled:
    return Pull(manifest, origin, root, 1, threading.Event(), spare).run()


def same(folder: Path, manifest: WeightManifest) -> bool:
    files = {path.name: path.read_bytes() for path in Path(manifest.path).iterdir()}
    return files == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("sizes", [(300_000, 1000), (1000,), (70_000, 500_000)])
def test_a_spare_folder_is_written_over(source: Source, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    spare, manifest = tmp_path / "to" / "v1.1", write_folder(source.root / "v1.2", seed=1, sizes=sizes, n_shards=1)
    write_folder(spare, seed=2, sizes=(300_000, 1000), n_shards=1)
    (spare / "stray.json").write_text("{}")
    (spare / "config.json").write_text('{"longer": "than it will be"}')
    source.offer(manifest)
    with (spare / SHARD).open("rb") as held:
        pulled = pull(manifest, source.origin(), tmp_path / "to", spare)
        assert same(pulled.folder, manifest) and pulled.n_resumed_bytes == 0
        assert held.read() == (pulled.folder / SHARD).read_bytes(), "it is another file"
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["v1.2"]


def test_a_folder_that_is_half_written_over_is_not_taken_for_any_version(source: Source, tmp_path: Path) -> None:
    sizes = (100_000,) * 8
    spare, manifest = tmp_path / "to" / "v1.1", write_folder(source.root / "v1.2", seed=1, sizes=sizes, n_shards=1)
    write_folder(spare, seed=2, sizes=sizes, n_shards=1)
    source.offer(manifest)
    network = Network(source.port, lambda data: None if network.n_bytes > 1_000_000 else data)
    with pytest.raises(TransferError):
        pull(manifest, source.origin(network.port), tmp_path / "to", spare)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["v1.2" + PARTIAL]
    pulled = pull(manifest, source.origin(), tmp_path / "to")
    assert 500_000 < pulled.n_resumed_bytes < 1_100_000 and pulled.n_refetched == 0
    assert same(pulled.folder, manifest)


class Server:
    """Keeps what it is told to load open, and says so of versions that it is not asked to be `silent` about."""

    def __init__(self, *silent: str) -> None:
        self.open: dict[str, BinaryIO] = {}
        self._silent = silent

    async def update_weights(self, path: str, version: str) -> None:
        self.open[version] = (Path(path) / SHARD).open("rb")
        if version in self._silent:
            raise EngineError("no answer in time")


async def test_only_what_a_server_has_given_up_is_written_over(source: Source, tmp_path: Path) -> None:
    transfer = HttpPull(SystemPlatform(), tmp_path / "to", lambda _: source.origin(), 2)
    server, bytes_of = Server("1.2"), dict[str, bytes]()
    for step in range(5):
        manifest = write_folder(source.root / f"v1.{step}", seed=step, sizes=(1000, 70_001), n_shards=1)
        source.offer(manifest)
        version = Version(lineage=1, step=step)
        bytes_of[str(version)] = (Path(manifest.path) / SHARD).read_bytes()
        announced = msgspec.structs.replace(manifest, source="here")
        published = PolicyPublished(id=f"p{step}", model="policy", version=version, parent=None, manifest=announced)
        await transfer.prepare(server, published)
        try:
            await transfer.load(server, published)
        except EngineError:
            continue
        # What it has, and what it may have without having said so.
        for kept in {"1.2", str(version)} & server.open.keys():
            assert server.open[kept].read() == bytes_of[kept]
            server.open[kept].seek(0)
        await asyncio.to_thread(shutil.rmtree, manifest.path)
    now = {version: file.read() for version, file in server.open.items()}
    # 1.0 was given up when 1.1 was loaded and has become 1.2, and 1.1, when 1.3 was loaded, has become 1.4.
    assert [now[version] == bytes_of[version] for version in bytes_of] == [False, False, True, True, True]
    assert (now["1.0"], now["1.1"]) == (bytes_of["1.2"], bytes_of["1.4"])
    await transfer.close()
