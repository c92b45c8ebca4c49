"""Whether bytes are the tensors that were announced: xxh3-128 by tensor, computed as the bytes pass."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import xxhash

from asearch.errors import ChecksumError, TransferError, WeightsGoneError
from asearch.weights.layout import Extent, TensorPlace, header_bytes, places
from schemas.records import CompanionFile, ShardFile, WeightManifest

BLOCK_BYTES = 256 << 10
"""Bytes read, hashed and written at once: they stay in the processor's cache."""
SUFFIX = ".safetensors"
MAX_COMPANION_BYTES = 256 << 20


class ExtentChecker:
    """Takes the bytes of consecutive extents in order, in any pieces, and tells which are wrong."""

    def __init__(self, extents: Sequence[Extent], checksums: Mapping[str, str]) -> None:
        self._extents = extents
        self._checksums = checksums
        self._hash = xxhash.xxh3_128()
        self._index = 0
        self._at = extents[0].start if extents else 0
        self.wrong: list[Extent] = []
        self._close()

    @property
    def at(self) -> int:
        """Where in the file the next byte belongs."""
        return self._at

    def feed(self, data: memoryview) -> None:
        """The next bytes; not beyond the last extent."""
        offset = 0
        while offset < len(data):
            n = min(self._extents[self._index].end - self._at, len(data) - offset)
            self._hash.update(data[offset : offset + n])
            offset += n
            self._at += n
            self._close()

    def _close(self) -> None:
        """Compare what has come to its end; empty tensors end at once."""
        while self._index < len(self._extents) and self._at == self._extents[self._index].end:
            extent = self._extents[self._index]
            if self._hash.hexdigest() != self._checksums.get(extent.name):
                self.wrong.append(extent)
            self._hash.reset()
            self._index += 1


def shard_places(shard: ShardFile, header: bytes) -> list[TensorPlace]:
    """The tensors of a shard whose header has come. Raises ChecksumError unless they are those that were announced."""
    if shard.header_checksum and xxhash.xxh3_128_hexdigest(header) != shard.header_checksum:
        raise ChecksumError(f"the header of {shard.name} is not the one that was announced")
    found = places(header, shard.size_bytes, shard.name)
    if {place.extent.name for place in found} != shard.checksums.keys():
        raise ChecksumError(f"{shard.name} does not hold the tensors that were announced")
    return found


def file_places(path: Path) -> list[TensorPlace]:
    """The tensors of a safetensors file. Raises OSError, ChecksumError."""
    with path.open("rb") as file:
        return places(_header(file.fileno(), path.name), os.fstat(file.fileno()).st_size, path.name)


def check_weights(folder: Path, manifest: WeightManifest, stop: threading.Event | None = None) -> int:
    """Read every announced file of `folder` and compare it; returns the number of bytes read.

    Raises WeightsGoneError if a file is missing (also if it goes meanwhile), ChecksumError naming what differs.
    """
    n_bytes = 0
    try:
        for companion in manifest.companions:
            n_bytes += _check_companion(folder / companion.name, companion)
        for shard in manifest.shards:
            n_bytes += _check_shard(folder / shard.name, shard, stop)
        if not folder.is_dir():
            raise WeightsGoneError(f"{folder} is gone: a newer version has been published")
    except FileNotFoundError as error:
        raise WeightsGoneError(f"{error.filename} is gone: a newer version has been published") from error
    except OSError as error:
        raise TransferError(f"weights in {folder} cannot be read: {error}") from error
    return n_bytes


def describe(manifest: WeightManifest) -> WeightManifest:
    """The manifest with what pullers need to know: the shards' headers and the other files of the folder.

    Raises OSError, ChecksumError.
    """
    folder = Path(manifest.path)
    shards = [_described(folder / shard.name, shard) for shard in manifest.shards]
    names = {shard.name for shard in shards}
    others = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in names)
    return msgspec.structs.replace(manifest, shards=shards, companions=[_companion(path) for path in others])


def _described(path: Path, shard: ShardFile) -> ShardFile:
    if path.suffix != SUFFIX:
        return shard
    with path.open("rb") as file:
        header = _header(file.fileno(), shard.name)
    return msgspec.structs.replace(shard, header_bytes=len(header), header_checksum=xxhash.xxh3_128_hexdigest(header))


def _companion(path: Path) -> CompanionFile:
    data = path.read_bytes()
    return CompanionFile(name=path.name, size_bytes=len(data), checksum=xxhash.xxh3_128_hexdigest(data))


def _check_companion(path: Path, companion: CompanionFile) -> int:
    with path.open("rb") as file:
        data = file.read(companion.size_bytes + 1)
    if len(data) != companion.size_bytes or xxhash.xxh3_128_hexdigest(data) != companion.checksum:
        raise ChecksumError(f"{path} is not the file that was announced")
    return len(data)


def _check_shard(path: Path, shard: ShardFile, stop: threading.Event | None) -> int:
    with path.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes != shard.size_bytes:
            raise ChecksumError(f"{path} has {size_bytes} bytes, {shard.size_bytes} were announced")
        header = _header(file.fileno(), shard.name)
        extents = [place.extent for place in shard_places(shard, header)]
        checker = ExtentChecker(extents, shard.checksums)
        file.seek(len(header))
        block = memoryview(bytearray(BLOCK_BYTES))
        while checker.at < size_bytes:
            if stop is not None and stop.is_set():
                raise TransferError(f"{path} was not read to its end: the engine stops")
            n = file.readinto(block)
            if not n:
                raise ChecksumError(f"{path} ends early")
            checker.feed(block[: min(n, size_bytes - checker.at)])
    if checker.wrong:
        raise ChecksumError(f"{path} is corrupt: the checksum of {checker.wrong[0].name} differs from the announced one")
    return size_bytes


def _header(fd: int, name: str) -> bytes:
    first = os.pread(fd, 8, 0)
    return os.pread(fd, header_bytes(first, name), 0)
