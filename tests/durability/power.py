"""A store on a loop-mounted file system whose power can be cut: what was not synced by then is gone."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.broker import Broker, free_port, start_broker, sync_store
from actors.runtime.bus import Bus
from actors.runtime.platform import SystemPlatform
from tests.runtime.facts import until

IMAGE_BYTES = 512 << 20
NOT_ALLOWED = "a loop device cannot be mounted here (it takes root with CAP_SYS_ADMIN), so no power cut can be played"


class LoopStore:
    """An ext4 file system in a file, mounted at `path`."""

    def __init__(self, folder: Path, size_bytes: int = IMAGE_BYTES) -> None:
        self.path = folder / "mounted"
        self._image = folder / "image"
        self._size_bytes = size_bytes

    def make(self) -> None:
        """Make and mount it. Raises OSError where that is not allowed."""
        self.path.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(self._size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def image_now(self) -> Path:
        """A copy of what has reached the disk so far; what the kernel still holds in memory is not in it."""
        copy = self._image.with_name("after-the-cut")
        _run("cp", "--sparse=always", str(self._image), str(copy))
        return copy

    def become(self, image: Path) -> None:
        """Mount this image instead; nobody may have files open."""
        _run("umount", str(self.path))
        image.rename(self._image)
        self._mount()

    def write_back(self) -> None:
        """Let everything reach the disk that was written so far, as the kernel does some time or other."""
        _run("sync", "-f", str(self.path))

    def remove(self) -> None:
        """Unmount and delete."""
        if self.path.is_mount():
            # Lazily: a process that died a moment ago may not have let go of its files yet.
            _run("umount", "--lazy", str(self.path))
        shutil.rmtree(self.path.parent, ignore_errors=True)


class PoweredBroker:
    """A server on such a store."""

    def __init__(self, store: LoopStore, broker: Broker) -> None:
        self.store = store
        self.broker = broker

    @property
    def url(self) -> str:
        """Where it listens; the same after a cut."""
        return self.broker.url

    async def ensure_streams(self, bus: Bus) -> None:
        """What a workspace does when a run starts."""
        await bus.ensure_topology()
        await asyncio.to_thread(sync_store, self.broker.folder)

    async def write_back(self, bus: Bus) -> None:
        """Let all that TRACE holds reach the disk: the server writes it to the file a moment after it has acknowledged it."""
        n_bytes = (await bus.stream_info("trace")).n_bytes
        await until(lambda: sum(path.stat().st_size for path in self.store.path.rglob("*-trace/msgs/*.blk")) >= n_bytes)
        await asyncio.to_thread(self.store.write_back)

    async def cut(self) -> None:
        """The server stops between two instructions, and the disk keeps what had reached it."""
        os.kill(self.broker.process.pid, signal.SIGSTOP)
        image = await asyncio.to_thread(self.store.image_now)
        self.broker.process.kill()
        await self.broker.process.wait()
        await asyncio.to_thread(self.store.become, image)

    async def start(self) -> None:
        """Start it again on its port and what is left of its data."""
        self.broker = await start_broker(self.broker.folder, SystemPlatform(), port=self.broker.port)

    async def stop(self) -> None:
        """End it if it runs."""
        if self.broker.process.returncode is None:
            await self.broker.stop(2.0)


@contextlib.contextmanager
def loop_store(folder: Path, size_bytes: int = IMAGE_BYTES) -> Iterator[LoopStore]:
    """A store for one test, which is skipped where mounting is not allowed."""
    store = LoopStore(folder / "store", size_bytes)
    try:
        store.make()
    except OSError as error:
        store.remove()
        pytest.skip(f"{NOT_ALLOWED}: {error}")
    try:
        yield store
    finally:
        store.remove()


async def powered_broker(store: LoopStore) -> PoweredBroker:
    """Start a server on the store."""
    return PoweredBroker(store, await start_broker(store.path / "broker", SystemPlatform(), port=free_port()))


def _run(*argv: str) -> None:
    """Run a command. Raises OSError with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
