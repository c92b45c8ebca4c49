"""Pull what has changed since the version that lies here, and make the new one of both.

The old folder is only read. What was made appears under its name when every tensor has matched its announced checksum; where that
fails the version is to be pulled whole.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from asearch.errors import ChecksumError, TransferError, WeightsGoneError
from asearch.weights.checking import BLOCK_BYTES, MAX_COMPANION_BYTES, SUFFIX, file_places
from asearch.weights.delta import DELTA_FROM, OpenTensor, Patch, alike, head_bytes, opened, part_bytes
from asearch.weights.pulling import PROGRESS, Pull
from asearch.weights.ranges import Connection, NotReadyError, Origin
from schemas.records import WeightManifest

MAX_PATIENCE_S = 600.0
"""How long a delta is waited for that is being made."""
RUN_BYTES = 8 << 20
"""Least size of the tensors that one request makes: little of it comes over the network, and they are applied side by side."""


class NoDeltaError(TransferError):
    """The source has no delta, or none that is worth it."""


@dataclass(frozen=True)
class _Part:
    """A tensor, what it is to be, and where its bytes are in the delta."""

    base: OpenTensor | None
    new: OpenTensor
    checksum: str
    start: int
    end: int


class DeltaPull(Pull):
    """One version on its way, as a difference to the one in `base`."""

    def __init__(
        self,
        manifest: WeightManifest,
        origin: Origin,
        root: Path,
        n_connections: int,
        stop: threading.Event,
        base: Path,
        patience_s: float = MAX_PATIENCE_S,
        spare: Path | None = None,
    ) -> None:
        """`base` is a folder below `root` that is whole; a delta that is being made is waited for no longer than `patience_s`."""
        super().__init__(manifest, origin, root, n_connections, stop, spare)
        self._base = base
        self._patience_s = patience_s

    @property
    def is_begun_whole(self) -> bool:
        """Whether an interrupted pull of the whole version has left something to go on from."""
        return (self._partial / PROGRESS).exists()

    @property
    def n_bytes(self) -> int:
        """That have come over the network so far."""
        return self._n_bytes

    def _bring_companion(self, connection: Connection, name: str, size_bytes: int, checksum: str) -> None:
        """Files beside the weights are often the old ones."""
        here = self._base / name
        is_bounded = size_bytes <= MAX_COMPANION_BYTES and "/" not in name and not name.startswith(".")
        if is_bounded and here.is_file() and here.stat().st_size == size_bytes:
            data = here.read_bytes()
            if xxhash.xxh3_128_hexdigest(data) == checksum:
                (self._partial / name).write_bytes(data)
                return
        super()._bring_companion(connection, name, size_bytes, checksum)

    def _bring(self, plan: Sequence[object]) -> None:
        """The tensors, all of them by the delta.

        Raises NoDeltaError, ChecksumError if it is malformed or does not make what was announced, TransferError.
        """
        url = f"{DELTA_FROM}{self._base.name}"
        try:
            with contextlib.ExitStack() as stack:
                n_tensors = sum(len(shard.checksums) for shard in self._manifest.shards)
                sizes = self._sizes(url, n_tensors)
                parts = self._parts(stack, sizes)
                self._patch_all(url, parts)
        except WeightsGoneError as error:
            raise NoDeltaError(f"there is no delta from {self._base.name} to {self._name}") from error

    def _sizes(self, url: str, n_tensors: int) -> list[int]:
        """The sizes of the delta's parts, as soon as it has been made."""
        deadline_s = time.monotonic() + self._patience_s
        with Connection(self._origin) as connection:
            while True:
                try:
                    head = self._patiently(lambda: connection.read(self._url(url), 0, head_bytes(n_tensors)))
                    self._n_bytes += len(head)
                    return part_bytes(head, n_tensors)
                except NotReadyError as error:
                    if time.monotonic() > deadline_s:
                        raise NoDeltaError(f"the delta takes longer than {self._patience_s:.1f} s to make") from error
                    self._halt(self._stop)

    def _parts(self, stack: contextlib.ExitStack, sizes: Sequence[int]) -> list[_Part]:
        try:
            old = {
                place.extent.name: OpenTensor(handle, place)
                for path in sorted(self._base.glob(f"*{SUFFIX}"))
                for handle in [stack.enter_context(opened(path, os.O_RDONLY))]
                for place in file_places(path)
            }
        except OSError as error:
            raise ChecksumError(f"the old version in {self._base} cannot be read: {error}") from error
        parts: list[_Part] = []
        at = head_bytes(len(sizes))
        for shard in sorted(self._manifest.shards, key=lambda shard: shard.name):
            path = self._partial / shard.name
            handle = stack.enter_context(opened(path, os.O_RDWR))
            for place in file_places(path):
                end = at + sizes[len(parts)]
                checksum = shard.checksums[place.extent.name]
                parts.append(_Part(alike(old, place), OpenTensor(handle, place), checksum, at, end))
                at = end
        return parts

    def _patch_all(self, url: str, parts: Sequence[_Part]) -> None:
        failed = threading.Event()
        causes: list[BaseException] = []

        def work(run: Sequence[_Part]) -> None:
            try:
                self._patch_run(url, run, failed)
            except BaseException as error:
                causes.append(error)
                failed.set()

        with ThreadPoolExecutor(self._n_connections, "delta") as threads:
            list(threads.map(work, _runs(parts)))
        if causes:
            # The others fail because of the first.
            raise causes[0]

    def _patch_run(self, url: str, run: Sequence[_Part], failed: threading.Event) -> None:
        """Consecutive tensors; a connection that breaks off goes on where it was."""
        self._halt(failed)
        patches = _Patches(run)

        def come(data: memoryview) -> None:
            self._halt(failed)
            patches.feed(data)

        with Connection(self._origin) as connection:
            block = memoryview(bytearray(BLOCK_BYTES))
            self._stream(connection, url, lambda: (patches.at, run[-1].end), block, come)


class _Patches:
    """Takes the bytes of consecutive parts in order, in any pieces. Raises ChecksumError at the first wrong tensor."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = iter(parts)
        self.at = parts[0].start
        self._part: _Part | None = None
        self._next()

    def feed(self, data: memoryview) -> None:
        while self._part is not None and len(data):
            n = min(len(data), self._part.end - self.at)
            self._patch.feed(data[:n])
            data = data[n:]
            self.at += n
            if self.at == self._part.end:
                self._next()

    def _next(self) -> None:
        """Close the tensor at its end, and those after it that are empty."""
        while self._part is None or self.at == self._part.end:
            if self._part is not None and self._patch.checksum() != self._part.checksum:
                name = self._part.new.place.extent.name
                raise ChecksumError(f"{name} does not come out of the delta as it was announced")
            self._part = next(self._parts, None)
            if self._part is None:
                return
            self._patch = Patch(self._part.base, self._part.new)


def _runs(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Cut so that each makes about as much, whatever its share of the delta."""
    run: list[_Part] = []
    n_bytes = 0
    for part in parts:
        run.append(part)
        n_bytes += part.new.place.extent.end - part.new.place.extent.start
        if n_bytes >= RUN_BYTES:
            yield run
            run, n_bytes = [], 0
    if run:
        yield run
