"""Pulling over HTTP: whole and checked, resumed where it was cut, and never a wrong byte under the final name."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from asearch.errors import ChecksumError, StorageError, TransferError, WeightsGoneError
from asearch.weights import pulling
from asearch.weights.checking import check_weights, shard_places
from asearch.weights.pulling import Pull, Pulled
from asearch.weights.ranges import Connection, Origin
from schemas.records import WeightManifest
from tests.weights.folders import Network, Source, kill_puller, serving, write_folder

PULL = """
import sys, threading, msgspec
from pathlib import Path
from asearch.weights import pulling
from asearch.weights.ranges import Origin
from schemas.records import WeightManifest
pulling.RUN_BYTES, pulling.BLOCK_BYTES = 1 << 16, 1 << 18
manifest = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=WeightManifest)
pulling.Pull(manifest, Origin(sys.argv[2], "a-token", 5.0), Path(sys.argv[3]), 2, threading.Event()).run()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with serving(tmp_path_factory.mktemp("source")) as held:
        yield held


@pytest.fixture(scope="module")
def manifest(source: Source) -> WeightManifest:
    return write_folder(source.root / "v1.5")


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch, source: Source, manifest: WeightManifest) -> None:
    monkeypatch.setattr(pulling, "RUN_BYTES", 1 << 16)
    monkeypatch.setattr(pulling, "BLOCK_BYTES", 1 << 18)
    source.offer(manifest)


def pull(manifest: WeightManifest, origin: Origin, root: Path, n_connections: int = 3) -> Pulled:
    return Pull(manifest, origin, root, n_connections, threading.Event()).run()


def same(folder: Path, manifest: WeightManifest) -> None:
    """Byte by byte, by another way than checksums."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in Path(manifest.path).iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (Path(manifest.path) / name).read_bytes()


def test_a_pulled_folder_is_the_announced_one(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    pulled = pull(manifest, source.origin(), tmp_path)
    same(pulled.folder, manifest)
    assert check_weights(pulled.folder, manifest) == pulled.n_bytes
    assert (pulled.n_resumed_bytes, pulled.n_refetched) == (0, 0)


def test_many_pull_at_once(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as threads:
        pulls = [threads.submit(pull, manifest, source.origin(), tmp_path / str(n)) for n in range(6)]
    for each in pulls:
        same(each.result().folder, manifest)


def test_a_byte_that_changes_on_the_way_is_asked_for_again(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    done: list[int] = []

    def flip(data: bytes) -> bytes:
        if len(data) == 1 << 14 and not done:
            done.append(1)
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    network = Network(source.port, flip)
    pulled = pull(manifest, source.origin(network.port), tmp_path)
    assert done and pulled.n_refetched == 1
    same(pulled.folder, manifest)


def test_bytes_that_are_wrong_twice_are_an_error_and_nothing_appears(source: Source, tmp_path: Path) -> None:
    manifest = write_folder(source.root / "v1.6", seed=3)
    source.offer(manifest)
    path = Path(manifest.path) / manifest.shards[1].name
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(ChecksumError, match=r"layer\.1\.\d .*wrong checksum twice"):
        pull(manifest, source.origin(), tmp_path)
    assert not (tmp_path / "v1.6").exists()
    shutil.rmtree(manifest.path)


@pytest.mark.parametrize("at", ["header", "companion"])
def test_a_wrong_header_or_companion_is_an_error(source: Source, tmp_path: Path, at: str) -> None:
    manifest = write_folder(source.root / "v1.7", seed=3)
    source.offer(manifest)
    name = manifest.shards[0].name if at == "header" else "config.json"
    with (Path(manifest.path) / name).open("r+b") as file:
        file.seek(0 if at == "companion" else 20)
        file.write(b"~")
    with pytest.raises(ChecksumError):
        pull(manifest, source.origin(), tmp_path)
    with pytest.raises(ChecksumError):
        check_weights(Path(manifest.path), manifest)
    shutil.rmtree(manifest.path)


def cutting(every: int) -> Callable[[bytes], bytes | None]:
    sent = 0

    def touch(data: bytes) -> bytes | None:
        nonlocal sent
        sent += len(data)
        if sent > every:
            sent = 0
            return None
        return data

    return touch


def test_a_connection_that_is_cut_again_and_again_costs_no_byte_twice(
    source: Source, manifest: WeightManifest, tmp_path: Path
) -> None:
    network = Network(source.port, cutting(400_000))
    pulled = pull(manifest, source.origin(network.port), tmp_path, n_connections=1)
    assert network.n_connections > 5
    same(pulled.folder, manifest)
    # What was on its way in a cut connection is lost: less than what the kernel and one block hold.
    assert pulled.n_bytes == sum(s.size_bytes for s in manifest.shards) + sum(c.size_bytes for c in manifest.companions)


def test_a_killed_puller_goes_on_where_it_was(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    kill_puller(PULL, source, manifest, tmp_path / "to", after_bytes=1_500_000, pause_s=0.05, lag_s=0.1)
    assert not (tmp_path / "to" / "v1.5").exists()
    pulled = pull(manifest, source.origin(), tmp_path / "to", n_connections=2)
    assert pulled.n_resumed_bytes > 1_000_000
    total = sum(s.size_bytes - s.header_bytes for s in manifest.shards)
    headers = sum(s.header_bytes for s in manifest.shards)
    assert pulled.n_bytes == total - pulled.n_resumed_bytes + headers
    same(pulled.folder, manifest)


def test_what_an_interrupted_pull_left_is_checked(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    network = Network(source.port, lambda data: None if network.n_bytes > 1_500_000 else data)
    with pytest.raises(TransferError):
        pull(manifest, source.origin(network.port), tmp_path, n_connections=1)
    # The largest tensor is asked for first.
    shard = manifest.shards[0]
    part = tmp_path / "v1.5.partial" / shard.name
    header = part.read_bytes()[: shard.header_bytes]
    largest = max((place.extent for place in shard_places(shard, header)), key=lambda extent: extent.end - extent.start)
    with part.open("r+b") as file:
        file.seek(largest.start + 100)
        file.write(b"????")
    pulled = pull(manifest, source.origin(), tmp_path)
    assert pulled.n_resumed_bytes > 0 and pulled.n_refetched == 1
    same(pulled.folder, manifest)


def test_a_source_that_is_gone_for_good_is_an_error(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    network = Network(source.port, lambda data: None if network.n_bytes > 1_000_000 else data)
    begun = time.monotonic()
    with pytest.raises(TransferError, match=r"does not send v1\.5"):
        pull(manifest, source.origin(network.port), tmp_path)
    assert time.monotonic() - begun < 10
    assert (tmp_path / "v1.5.partial").is_dir() and not (tmp_path / "v1.5").exists()


def test_a_source_that_falls_silent_is_an_error(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    def silent(data: bytes) -> bytes:
        if network.n_bytes > 1_000_000:
            time.sleep(60)
        return data

    network = Network(source.port, silent)
    with pytest.raises(TransferError, match="timed out"):
        pull(manifest, source.origin(network.port, timeout_s=0.2), tmp_path)


def test_a_version_that_was_deleted_is_gone(source: Source, tmp_path: Path) -> None:
    manifest = write_folder(source.root / "v1.8")
    source.offer(manifest)
    shutil.rmtree(manifest.path)
    with pytest.raises(WeightsGoneError):
        pull(manifest, source.origin(), tmp_path)
    with pytest.raises(WeightsGoneError):
        check_weights(Path(manifest.path), manifest)


def test_a_version_that_is_deleted_under_way_is_gone_or_whole(source: Source, tmp_path: Path) -> None:
    manifest = write_folder(source.root / "v1.9")
    source.offer(manifest)

    def deleting(data: bytes) -> bytes:
        if network.n_bytes > 1_000_000:
            shutil.rmtree(manifest.path, ignore_errors=True)
        return data

    network = Network(source.port, deleting)
    with pytest.raises(WeightsGoneError):
        pull(manifest, source.origin(network.port), tmp_path, n_connections=1)
    assert not (tmp_path / "v1.9").exists()


def test_only_announced_files_are_served_and_only_with_the_token(
    source: Source, manifest: WeightManifest, tmp_path: Path
) -> None:
    secret = source.root / "v1.5" / "secret.txt"
    secret.write_text("secret")
    (source.root / "v0.1").symlink_to("/etc")
    name = manifest.shards[0].name
    block = memoryview(bytearray(100))
    paths = ["/v1.5/secret.txt", "/v1.5/../v1.5/config.json", "/../announced", "/v0.1/passwd", f"/v1.5/{name}%00", "/", "/v1.5"]
    try:
        for path in paths:
            with Connection(source.origin()) as connection, pytest.raises(WeightsGoneError):
                list(connection.stream(path, 0, 2, block))
    finally:
        secret.unlink()
        (source.root / "v0.1").unlink()
    for token in ("", "a-toke", "a-token2"):
        origin = Origin(source.origin().url, token)
        assert not token or token not in repr(origin)
        with Connection(origin) as connection, pytest.raises(TransferError, match="token"):
            list(connection.stream(f"/v1.5/{name}", 0, 2, block))
    source.offer()
    with pytest.raises(WeightsGoneError):
        pull(manifest, source.origin(), tmp_path)


def test_a_hostile_manifest_writes_nowhere_else(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    for name in ("../escaped", "/tmp/escaped", ".progress"):
        shard = msgspec.structs.replace(manifest.shards[0], name=name)
        with pytest.raises(ChecksumError):
            pull(msgspec.structs.replace(manifest, shards=[shard]), source.origin(), tmp_path)
        companion = msgspec.structs.replace(manifest.companions[0], name=name)
        with pytest.raises(ChecksumError):
            pull(msgspec.structs.replace(manifest, companions=[companion]), source.origin(), tmp_path)
    (tmp_path / "root").mkdir()
    for path in ("/weights/..", "/", "/weights/.hidden"):
        with pytest.raises(ChecksumError, match="no folder of weights"):
            pull(msgspec.structs.replace(manifest, path=path), source.origin(), tmp_path / "root")
    assert (tmp_path / "root").is_dir()


def test_no_room_is_a_storage_error(source: Source, manifest: WeightManifest, tmp_path: Path) -> None:
    (tmp_path / "v1.5.partial").write_text("a file stands where the folder belongs")
    with pytest.raises(StorageError, match="cannot be written"):
        pull(manifest, source.origin(), tmp_path)
