"""Weights pulled from the trainer's host over HTTP into shared memory or a disk of the engine's host."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from actors.runtime.platform import Platform
from actors.runtime.transfer.transfer import WeightReceiver
from asearch.errors import ChecksumError, EngineError, TransferError, WeightsGoneError
from asearch.weights.checking import check_weights
from asearch.weights.pulling import Pull, Pulled, prune
from asearch.weights.ranges import Origin
from schemas.events import PolicyPublished
from schemas.records import WeightManifest


class HttpPull:
    """Pulls into a folder of its own. The version that the server has stays until the next one is loaded."""

    def __init__(self, platform: Platform, root: Path, origin_of: Callable[[str], Origin], n_connections: int) -> None:
        """`origin_of` adds token and timeout to a source's address."""
        self._platform = platform
        self._root = root
        self._origin_of = origin_of
        self._n_connections = n_connections
        self._stop = threading.Event()
        self._ready: Path | None = None
        self._loaded: Path | None = None
        self._n_bytes = 0
        self._n_resumed_bytes = 0
        self._n_refetched = 0
        self._transfer_s = 0.0

    async def prepare(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Pull and check the version, or check what lies here of an earlier life.

        Raises WeightsGoneError, ChecksumError, TransferError, StorageError.
        """
        begun_s = self._platform.monotonic()
        name = Path(published.manifest.path).name
        await asyncio.to_thread(prune, self._root, [name, *([self._loaded.name] if self._loaded else [])])
        folder = self._root / name
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
        return Pull(published.manifest, self._origin_of(source), self._root, self._n_connections, self._stop).run()

    async def load(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Let the server read the pulled folder."""
        if self._ready is None:
            raise EngineError(f"version {published.version} was not pulled")
        await server.update_weights(str(self._ready), str(published.version))
        self._loaded = self._ready

    async def close(self) -> None:
        """End a pull under way; delete what was pulled."""
        self._stop.set()
        await asyncio.to_thread(shutil.rmtree, self._root, True)

    def gauges(self) -> dict[str, float]:
        """Bytes pulled, bytes that an interrupted pull had left, tensors asked for twice; seconds of the last version."""
        return {
            "n_transferred_bytes": self._n_bytes,
            "n_resumed_bytes": self._n_resumed_bytes,
            "n_refetched": self._n_refetched,
            "transfer_s": self._transfer_s,
        }
