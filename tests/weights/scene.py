"""A trainer's publishing side and engines that follow it, on a bus in memory, with real processes between."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open

from actors.runtime.actor import Context
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from actors.runtime.transfer.broadcasting import TAKES, Broadcaster
from actors.runtime.transfer.choosing import transfer_of
from actors.runtime.transfer.following import PolicyFollower
from actors.runtime.transfer.source import WeightSource
from asearch.configuration.engine import EngineSettings
from asearch.configuration.settings import Settings
from asearch.configuration.transfer import TransferSettings
from asearch.engines.client import EngineClient
from asearch.models.weights import checksum
from asearch.weights.checking import describe
from schemas.commands import Heartbeat
from schemas.events import PolicyPublished
from schemas.records import ShardFile, Version, WeightManifest

NAMES = ("model.safetensors",)


def manifest_of(folder: Path) -> WeightManifest:
    """What a trainer would announce of a folder."""
    shards: list[ShardFile] = []
    for name in NAMES:
        with safe_open(folder / name, framework="pt") as held:
            checksums = {key: checksum(held.get_tensor(key)) for key in held.keys()}  # noqa: SIM118
        shards.append(ShardFile(name=name, size_bytes=(folder / name).stat().st_size, checksums=checksums))
    return describe(WeightManifest(path=str(folder), shards=shards))


class Engine:
    """What an engine actor has of it."""

    def __init__(self, scene: "Scene", name: str, client: Any) -> None:
        self.name, self.client = name, client
        bus = MemoryBus(scene.broker, "run", name, scene.platform)
        context = Context("run", scene.folder, scene.settings, bus, scene.platform, name)
        self.transfer = transfer_of(context, scene.weights)
        self.loaded: list[str] = []
        self.follower = PolicyFollower(bus, scene.platform, self.transfer, self._on_loaded)
        self.follower.start(scene.spawn)
        self.follower.attach(client)

    async def _on_loaded(self, published: PolicyPublished) -> None:
        self.loaded.append(str(published.version))

    async def serves(self, version: str) -> None:
        """Wait until it does."""
        while version not in self.loaded:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Scene:
    """`publish` announces a copy of a model folder as a version; `engine` lets a server follow."""

    def __init__(self, folder: Path, way: str, kind: str = "embedded", delta: str = "off", **transfer: Any) -> None:
        self.folder, self.weights = folder, folder / "weights"
        settings = TransferSettings(timeout_s=5.0, **{"broadcast_timeout_s": 8.0, **transfer})
        self.settings = Settings(engine=EngineSettings(kind=kind, device="cpu", transfer=way, delta=delta), transfer=settings)
        self.platform = SystemPlatform(0)
        self.broker = MemoryBroker(self.platform)
        self.bus = MemoryBus(self.broker, "run", "trainer-0", self.platform)
        self.tasks: list[asyncio.Task[None]] = []
        self.engines: list[Engine] = []
        self.source: WeightSource | None = None
        self.broadcaster: Broadcaster | None = None
        self.step = 0
        self.pid = os.getpid()
        """That engines tell in their heartbeats."""

    async def __aenter__(self) -> "Scene":
        await self.bus.ensure_topology()
        if self.settings.engine.transfer != "shared":
            self.source = WeightSource(self.platform, self.weights, self.folder, "trainer-0", self.settings.transfer)
            await self.source.start()
        if self.settings.engine.transfer == "broadcast":
            self.broadcaster = Broadcaster(self.bus, self.platform, self.folder / "sender.log", self.settings.transfer)
            await self.broadcaster.start()
            self.spawn(self._beat(), "heartbeats")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for engine in self.engines:
            await engine.transfer.close()
        if self.broadcaster is not None:
            await self.broadcaster.stop()
        if self.source is not None:
            await self.source.stop()

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """A task of the scene."""
        self.tasks.append(asyncio.create_task(coroutine, name=name))

    async def _beat(self) -> None:
        bus = MemoryBus(self.broker, "run", "engine-9", self.platform)
        while True:
            for engine in self.engines:
                gauges = {TAKES: engine.follower.gauges().get(TAKES, 0.0)}
                beat = Heartbeat(actor="engine", actor_id=engine.name, pid=self.pid, at_ns=0, state="ready", gauges=gauges)
                await bus.publish(beat, key=engine.name)
            await asyncio.sleep(0.1)

    def engine(self, client: EngineClient | Any, name: str = "engine-0") -> Engine:
        """A server that follows from now on."""
        engine = Engine(self, name, client)
        self.engines.append(engine)
        return engine

    async def publish(self, model: Path, spoil: bool = False) -> str:
        """Announce a copy of `model` as the next version; `spoil` changes a byte of it after it was described."""
        version = Version(lineage=1, step=self.step)
        self.step += 1
        folder = self.weights / f"v{version}"
        shutil.copytree(model, folder)
        manifest = manifest_of(folder)
        if spoil:
            with (folder / NAMES[0]).open("r+b") as file:
                file.seek(-3, 2)
                file.write(b"\x01")
        if self.source is not None:
            manifest = await self.source.offer(manifest, 3)
        if self.broadcaster is not None:
            manifest = self.broadcaster.offer(manifest)
        event = PolicyPublished(id=f"p{version}", model="policy", version=version, parent=None, manifest=manifest)
        await self.bus.append(event, "policy")
        if self.broadcaster is not None:
            self.broadcaster.send(manifest, version)
        return str(version)

    def delete(self, version: str) -> None:
        """As a trainer does with old versions."""
        shutil.rmtree(self.weights / f"v{version}")

    async def group_stands(self) -> None:
        """Wait until a sender is ready for the engines that are there."""
        assert self.broadcaster is not None
        names = sorted(engine.name for engine in self.engines)
        while True:
            manifest = self.broadcaster.offer(WeightManifest(path="", shards=[]))
            if manifest.broadcast is not None and manifest.broadcast.members == names:
                return
            await asyncio.sleep(0.1)


def bare(manifest: WeightManifest) -> WeightManifest:
    """Without what a way has added."""
    return msgspec.structs.replace(manifest, source="", broadcast=None)
