"""Weights pulled from the trainer's host over HTTP into shared memory or a disk of the engine's host."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from actors.runtime.platform import Platform
from actors.runtime.transfer.deltas import DeltaChoice
from actors.runtime.transfer.transfer import WeightReceiver
from asearch.errors import ChecksumError, EngineError, TransferError, WeightsGoneError
from asearch.weights.checking import check_weights
from asearch.weights.delta_pulling import MAX_PATIENCE_S, DeltaPull, NoDeltaError
from asearch.weights.pulling import Pull, Pulled, prune
from asearch.weights.ranges import Origin
from schemas.events import PolicyPublished
from schemas.records import WeightManifest


class HttpPull:
    """Pulls into a folder of its own. The version that the server has stays until the next one is loaded.

    The one before is written over by the next pull. No other folder is: a server may have mapped whatever it was told to load
    until it says that it has loaded another one, and what is deleted stays in its mapping.
    """

    def __init__(
        self,
        platform: Platform,
        root: Path,
        origin_of: Callable[[str], Origin],
        n_connections: int,
        delta: str = "off",
    ) -> None:
        """`origin_of` adds token and timeout to a source's address; `delta` is a mode of `DeltaChoice`."""
        self._platform = platform
        self._root = root
        self._origin_of = origin_of
        self._n_connections = n_connections
        self._stop = threading.Event()
        self._ready: Path | None = None
        self._loaded: Path | None = None
        self._spare: Path | None = None
        """What the server had before."""
        self._n_bytes = 0
        self._n_resumed_bytes = 0
        self._n_refetched = 0
        self._transfer_s = 0.0
        self._choice = DeltaChoice(delta)
        self._n_deltas = 0
        self._n_deltas_refused = 0
        self._n_deltas_failed = 0

    async def prepare(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Pull and check the version, or check what lies here of an earlier life.

        Raises WeightsGoneError, ChecksumError, TransferError, StorageError.
        """
        begun_s = self._platform.monotonic()
        name = Path(published.manifest.path).name
        await asyncio.to_thread(prune, self._root, [name, *(kept.name for kept in (self._loaded, self._spare) if kept)])
        folder = self._root / name
        if self._spare == folder:
            self._spare = None  # announced again: the server may soon have it
        if not await asyncio.to_thread(self._has, folder, published.manifest):
            pulled = await asyncio.to_thread(self._pull, published)
            self._n_bytes += pulled.n_bytes
            self._n_resumed_bytes += pulled.n_resumed_bytes
            self._n_refetched += pulled.n_refetched
        self._ready = folder
        self._transfer_s = self._platform.monotonic() - begun_s

    def _has(self, folder: Path, manifest: WeightManifest) -> bool:
        """Whether the version lies here whole; what lies here otherwise is pulled again."""
        if not folder.is_dir():
            return False
        try:
            check_weights(folder, manifest, self._stop)
        except (ChecksumError, WeightsGoneError) as error:
            structlog.get_logger().warning("what lies here is pulled again", folder=str(folder), error=str(error))
            return False
        return True

    def _pull(self, published: PolicyPublished) -> Pulled:
        source = published.manifest.source
        if not source:
            raise TransferError(f"version {published.version} was announced without a source: the trainer serves no weights")
        origin = self._origin_of(source)
        spare, self._spare = self._spare, None
        pulled = self._pull_delta(published.manifest, origin, spare)
        if pulled is None:
            pulled = Pull(published.manifest, origin, self._root, self._n_connections, self._stop, spare).run()
            self._choice.pulled_whole(pulled.elapsed_s, pulled.n_resumed_bytes == 0)
        return pulled

    def _pull_delta(self, manifest: WeightManifest, origin: Origin, spare: Path | None) -> Pulled | None:
        """The version, made from the one that the server has; None where it is to be pulled whole."""
        if self._loaded is None or not self._choice.asks:
            return None
        patience_s = self._choice.patience_s or MAX_PATIENCE_S
        pull = DeltaPull(manifest, origin, self._root, self._n_connections, self._stop, self._loaded, patience_s, spare)
        if pull.is_begun_whole:
            return None
        try:
            pulled = pull.run()
        except TransferError as error:
            if self._stop.is_set():
                raise
            self._choice.went_wrong()
            self._n_bytes += pull.n_bytes
            if isinstance(error, NoDeltaError):
                self._n_deltas_refused += 1
                return None
            self._n_deltas_failed += 1
            structlog.get_logger().warning("a delta is of no use, the version is pulled whole", error=str(error))
            return None
        self._choice.pulled_delta(pulled.elapsed_s)
        self._n_deltas += 1
        return pulled

    async def load(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Let the server read the pulled folder."""
        if self._ready is None:
            raise EngineError(f"version {published.version} was not pulled")
        await server.update_weights(str(self._ready), str(published.version))
        if self._loaded != self._ready:
            self._spare, self._loaded = self._loaded, self._ready

    async def close(self) -> None:
        """End a pull under way; delete what was pulled."""
        self._stop.set()
        await asyncio.to_thread(shutil.rmtree, self._root, True)

    def gauges(self) -> dict[str, float]:
        """Bytes pulled, bytes that an interrupted pull had left, tensors asked for twice; seconds of the last version.

        Versions that came as deltas; deltas that were not to be had, and that were wrong.
        """
        return {
            "n_transferred_bytes": self._n_bytes,
            "n_resumed_bytes": self._n_resumed_bytes,
            "n_refetched": self._n_refetched,
            "transfer_s": self._transfer_s,
            "n_deltas": self._n_deltas,
            "n_deltas_refused": self._n_deltas_refused,
            "n_deltas_failed": self._n_deltas_failed,
        }
