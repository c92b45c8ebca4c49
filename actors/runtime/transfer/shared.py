"""Weights in a folder that trainer and engine both see: shared memory or a disk of one host."""

import asyncio
import threading
from pathlib import Path

from actors.runtime.platform import Platform
from actors.runtime.transfer.transfer import WeightReceiver
from asearch.errors import WeightsGoneError
from asearch.weights.checking import check_weights
from schemas.events import PolicyPublished


class SharedFolder:
    """Nothing is copied; every announced checksum is compared before the server is given the folder."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._stop = threading.Event()
        self._n_bytes = 0
        self._transfer_s = 0.0

    async def prepare(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Check the announced folder. Raises WeightsGoneError, ChecksumError, TransferError."""
        folder = Path(published.manifest.path)
        begun_s = self._platform.monotonic()
        if not await asyncio.to_thread(folder.is_dir):
            raise WeightsGoneError(f"{folder} is gone: a newer version has been published")
        self._n_bytes += await asyncio.to_thread(check_weights, folder, published.manifest, self._stop)
        self._transfer_s = self._platform.monotonic() - begun_s

    async def load(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Let the server read the folder."""
        await server.update_weights(published.manifest.path, str(published.version))

    async def close(self) -> None:
        """End a check that is under way."""
        self._stop.set()

    def gauges(self) -> dict[str, float]:
        """Bytes checked so far; seconds that the last version took."""
        return {"n_transferred_bytes": self._n_bytes, "transfer_s": self._transfer_s}
