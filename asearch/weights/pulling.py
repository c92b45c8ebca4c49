"""Pull an announced version from the trainer's host: ranges over several connections, hashed as they come, resumed where cut.

Runs in threads of the caller's process: reading, hashing and writing leave Python's lock alone.
"""

import concurrent.futures
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

from asearch.errors import ChecksumError, StorageError, TransferError
from asearch.weights import sglang
from asearch.weights.checking import MAX_COMPANION_BYTES, ExtentChecker, shard_places
from asearch.weights.layout import MAX_HEADER_BYTES, Extent, TensorPlace, runs
from asearch.weights.progress import Progress
from asearch.weights.ranges import BrokenConnectionError, Connection, Origin
from asearch.weights.sglang import HeldWeights
from schemas.records import ShardFile, WeightManifest

PARTIAL = ".partial"
"""Ending of a folder that is not whole."""
PROGRESS = ".progress"
BLOCK_BYTES = 1 << 20
"""Bytes received, written and hashed at once: in smaller ones calls cost more, larger ones leave the processor's cache."""
RUN_BYTES = 32 << 20
"""Least size of what is asked for in one request; a tensor is never cut."""
MAX_TRIES = 4
"""Connections in a row that may bring nothing."""
RETRY_S = 0.1
"""Wait before the second of them; it doubles with every further one."""


@dataclass(frozen=True)
class Pulled:
    """What a pull did."""

    folder: Path
    n_bytes: int
    """That came over the network."""
    n_resumed_bytes: int
    """That an earlier, interrupted pull had left."""
    n_refetched: int
    """Tensors whose first bytes were wrong."""
    elapsed_s: float


@dataclass(frozen=True)
class _Run:
    """Consecutive tensors of a shard: what one request asks for."""

    shard: ShardFile
    extents: list[Extent]

    @property
    def start(self) -> int:
        return self.extents[0].start

    @property
    def n_bytes(self) -> int:
        return self.extents[-1].end - self.start


class Pull:
    """One version on its way into `root / NAME`, where NAME is that of the announced folder."""

    def __init__(
        self,
        manifest: WeightManifest,
        origin: Origin,
        root: Path,
        n_connections: int,
        stop: threading.Event,
        spare: Path | None = None,
    ) -> None:
        """`spare` is a pulled folder that no server reads any more: its memory is written over, which is faster than new."""
        self._manifest = manifest
        self._origin = origin
        self._name = Path(manifest.path).name
        self._folder = root / self._name
        self._partial = self._folder.with_name(self._folder.name + PARTIAL)
        self._n_connections = n_connections
        self._stop = stop
        self._spare = spare
        self._turn = threading.Lock()
        self._n_bytes = 0
        self._n_resumed = 0
        self._n_refetched = 0

    def run(self) -> Pulled:
        """Bring the version whole and checked under its name.

        Raises WeightsGoneError if the source has deleted it, ChecksumError if it sends wrong bytes twice, StorageError if
        there is no room, TransferError if it cannot be reached. What has come stays, and the next pull goes on from there.
        """
        begun_s = time.monotonic()
        if not self._name or self._name.startswith("."):
            raise ChecksumError(f"{self._manifest.path!r} is no folder of weights: its name says nothing")
        try:
            self._make_folder()
            with Connection(self._origin) as connection:
                for companion in self._manifest.companions:
                    self._bring_companion(connection, companion.name, companion.size_bytes, companion.checksum)
                plan = [run for shard in self._manifest.shards for run in self._plan(connection, shard)]
            self._bring(plan)
            shutil.rmtree(self._folder, ignore_errors=True)
            (self._partial / PROGRESS).unlink(missing_ok=True)
            self._partial.rename(self._folder)
        except OSError as error:
            raise StorageError(f"weights cannot be written to {self._partial}: {error}") from error
        elapsed_s = time.monotonic() - begun_s
        return Pulled(self._folder, self._n_bytes, self._n_resumed, self._n_refetched, elapsed_s)

    def _make_folder(self) -> None:
        """From the spare folder if there is one, and nothing of this version yet.

        A folder that is written over has the name of one that is not whole, and tells of no progress, before its first byte
        changes.
        """
        if self._spare is not None and self._spare.is_dir() and not self._partial.exists():
            self._spare.rename(self._partial)
        self._partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {PROGRESS, *(each.name for each in (*self._manifest.shards, *self._manifest.companions))}
        for path in self._partial.iterdir():
            if path.name not in names:
                path.unlink()

    def _bring_companion(self, connection: Connection, name: str, size_bytes: int, checksum: str) -> None:
        if size_bytes > MAX_COMPANION_BYTES or "/" in name or name.startswith("."):
            raise ChecksumError(f"{name!r} of {size_bytes} bytes is no file that belongs beside weights")
        path = self._partial / name
        if path.is_file() and xxhash.xxh3_128_hexdigest(path.read_bytes()) == checksum:
            return
        data = self._small(connection, name, size_bytes, checksum)
        path.write_bytes(data)

    def _small(self, connection: Connection, name: str, n_bytes: int, checksum: str) -> bytes:
        """The first bytes of a file, whose checksum is known; asked for again once if they are wrong."""
        for _ in range(2):
            data = self._patiently(lambda: connection.read(self._url(name), 0, n_bytes))
            self._n_bytes += len(data)
            if not checksum or xxhash.xxh3_128_hexdigest(data) == checksum:
                return data
            self._n_refetched += 1
        raise ChecksumError(f"{self._origin.url}{self._url(name)} is not what was announced, twice in a row")

    def _url(self, name: str) -> str:
        return f"/{self._folder.name}/{name}"

    def _plan(self, connection: Connection, shard: ShardFile) -> list[_Run]:
        """The requests of a shard, whose file is made at its full size."""
        if "/" in shard.name or shard.name.startswith(".") or not 8 <= shard.header_bytes <= MAX_HEADER_BYTES:
            raise ChecksumError(f"{shard.name!r} cannot be pulled: the announcement does not describe its header")
        header = self._small(connection, shard.name, shard.header_bytes, shard.header_checksum)
        extents = [place.extent for place in shard_places(shard, header)]
        handle = os.open(self._partial / shard.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, shard.size_bytes)
            os.pwrite(handle, header, 0)
        finally:
            os.close(handle)
        return [_Run(shard, run) for run in runs(extents, RUN_BYTES)]

    def _bring(self, plan: list[_Run]) -> None:
        named = msgspec.msgpack.encode([self._manifest, [[run.shard.name, run.start, run.n_bytes] for run in plan]])
        progress = Progress(self._partial / PROGRESS, named, len(plan))
        # The largest first, so that none is left when the others are done.
        order = iter(sorted(range(len(plan)), key=lambda part: -plan[part].n_bytes))
        failed = threading.Event()
        cause: BaseException | None = None
        try:
            with concurrent.futures.ThreadPoolExecutor(self._n_connections, "pull") as threads:
                n_threads = min(self._n_connections, max(1, len(plan)))
                work = [threads.submit(self._work, plan, order, progress, failed) for _ in range(n_threads)]
                for each in concurrent.futures.as_completed(work):
                    # The others fail because of the first.
                    cause = cause or each.exception()
                    if cause is not None:
                        failed.set()
        finally:
            progress.close()
        if cause is not None:
            raise cause

    def _work(self, plan: list[_Run], order: Iterator[int], progress: Progress, failed: threading.Event) -> None:
        with Connection(self._origin) as connection:
            while not failed.is_set():
                with self._turn:
                    part = next(order, None)
                if part is None:
                    return
                self._bring_run(connection, plan[part], progress, part, failed)

    def _bring_run(self, connection: Connection, run: _Run, progress: Progress, part: int, failed: threading.Event) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        checker = ExtentChecker(run.extents, run.shard.checksums)
        with _opened(self._partial / run.shard.name) as handle:
            self._check_present(handle, checker, min(progress[part], run.n_bytes), block)

            def come(data: memoryview) -> None:
                self._halt(failed)
                os.pwrite(handle, data, checker.at)
                checker.feed(data)
                progress[part] = checker.at - run.start

            end = run.start + run.n_bytes
            self._stream(connection, run.shard.name, lambda: (checker.at, end), block, come)
            for extent in checker.wrong:
                self._bring_again(connection, handle, run.shard, extent, block, failed)

    def _check_present(self, handle: int, checker: ExtentChecker, n_bytes: int, block: memoryview) -> None:
        """Hash what an earlier pull has left; a tensor that is wrong in it is asked for again like any other."""
        end = checker.at + n_bytes
        while checker.at < end:
            n = os.preadv(handle, [block[: min(len(block), end - checker.at)]], checker.at)
            checker.feed(block[:n])
        with self._turn:
            self._n_resumed += n_bytes

    def _bring_again(
        self, connection: Connection, handle: int, shard: ShardFile, extent: Extent, block: memoryview, failed: threading.Event
    ) -> None:
        with self._turn:
            self._n_refetched += 1
        checker = ExtentChecker([extent], shard.checksums)

        def come(data: memoryview) -> None:
            self._halt(failed)
            os.pwrite(handle, data, checker.at)
            checker.feed(data)

        self._stream(connection, shard.name, lambda: (checker.at, extent.end), block, come)
        if checker.wrong:
            # Nothing of the file is kept: whatever is wrong with it, the next pull must not go on from it.
            (self._partial / PROGRESS).unlink(missing_ok=True)
            raise ChecksumError(
                f"{extent.name} of {self._origin.url}{self._url(shard.name)} came with a wrong checksum twice in a row: "
                "the file at the source or the network between is corrupt"
            )

    def _stream(
        self,
        connection: Connection,
        name: str,
        left: Callable[[], tuple[int, int]],
        block: memoryview,
        come: Callable[[memoryview], None],
    ) -> None:
        """Ask for what is left until nothing is, over as many connections as it takes."""
        n_fruitless = 0
        while (asked := left())[0] < asked[1]:
            try:
                for data in connection.stream(self._url(name), *asked, block):
                    come(data)
                    with self._turn:
                        self._n_bytes += len(data)
            except BrokenConnectionError as error:
                n_fruitless = n_fruitless + 1 if left()[0] == asked[0] else 0
                self._wait(n_fruitless, error)

    def _patiently(self, read: Callable[[], bytes]) -> bytes:
        n_fruitless = 0
        while True:
            try:
                return read()
            except BrokenConnectionError as error:
                n_fruitless += 1
                self._wait(n_fruitless, error)

    def _wait(self, n_fruitless: int, error: BrokenConnectionError) -> None:
        if n_fruitless >= MAX_TRIES:
            raise TransferError(f"{self._origin.url} does not send {self._folder.name}: {error}") from error
        if self._stop.wait(RETRY_S * 2 ** max(0, n_fruitless - 1)):
            raise TransferError("the pull was stopped")

    def _halt(self, failed: threading.Event) -> None:
        if self._stop.is_set() or failed.is_set():
            raise TransferError("the pull was stopped")


def pull_places(manifest: WeightManifest, origin: Origin) -> list[TensorPlace]:
    """The tensors of a version, file by file in the order of their bytes; only headers are read. Raises TransferError."""
    found: list[TensorPlace] = []
    with Connection(origin) as connection:
        for shard in manifest.shards:
            header = connection.read(f"/{Path(manifest.path).name}/{shard.name}", 0, shard.header_bytes)
            found.extend(shard_places(shard, header))
    return found


def pull_held(manifest: WeightManifest, origin: Origin) -> HeldWeights:
    """What SGLang ought to tell of a version, as the source computes it. Raises TransferError."""
    with Connection(origin) as connection:
        data = connection.fetch(f"/{Path(manifest.path).name}/{sglang.FILE}", sglang.MAX_BYTES)
    try:
        return msgspec.json.decode(data, type=HeldWeights)
    except msgspec.MsgspecError as error:
        raise TransferError(f"{origin.url} answered with something that is no checksums: {error}") from error


def prune(root: Path, keep: Iterable[str]) -> None:
    """Delete every pulled folder, whole or not, but those of these names and their unfinished ones."""
    kept = {name for each in keep for name in (each, each + PARTIAL)}
    if root.is_dir():
        for path in root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _opened(path: Path) -> Generator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)
