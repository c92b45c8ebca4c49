"""What the trainer's side does about engines that are slow, and about senders that do not start."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from actors.runtime.bus import Incoming
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform, SystemProcess
from actors.runtime.policy_journal import PolicyJournal
from actors.runtime.publishing import Publisher
from actors.runtime.ranks import Rank
from actors.runtime.transfer import source as module
from actors.runtime.transfer.broadcasting import Broadcaster, Sender
from actors.runtime.transfer.source import WeightSource
from asearch.configuration.transfer import TransferSettings
from asearch.errors import WeightsGoneError
from asearch.weights.ranges import Connection, Origin
from schemas.broadcasting import WeightsSent
from schemas.records import Broadcast, Version, WeightManifest
from tests.weights.folders import write_folder
from tests.weights.test_members import Beat


class Clocked(SystemPlatform):
    """Its clock goes as it is told; what it starts ends at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.started_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> SystemProcess:
        self.started_s.append(self.now_s - 1000.0)
        return await super().spawn([sys.executable, "-S", "-c", ""], log_path=log_path)


async def test_a_sender_that_does_not_start_is_tried_ever_more_seldom(tmp_path: Path) -> None:
    platform = Clocked()
    bus = MemoryBus(MemoryBroker(platform), "run", "trainer-0", platform)
    broadcaster = Broadcaster(bus, platform, tmp_path / "log", TransferSettings())
    for _ in range(100):
        await broadcaster._heard(cast("Incoming", Beat("engine-0")))
        assert broadcaster.offer(WeightManifest(path="", shards=[])).broadcast is None
        if broadcaster._task is not None:
            await broadcaster._task
        platform.now_s += 1.0
    assert platform.started_s == [0.0, 10.0, 30.0, 70.0]
    assert broadcaster.n_failed == 4
    await broadcaster.stop()


async def test_a_folder_that_is_sent_outlives_its_turn(tmp_path: Path) -> None:
    platform, folder, sent = SystemPlatform(), tmp_path / "weights", asyncio.Event()
    bus = MemoryBus(MemoryBroker(platform), "run", "trainer-0", platform)
    broadcaster = Broadcaster(bus, platform, tmp_path / "log", TransferSettings())

    async def send(*_: object) -> WeightsSent:
        await sent.wait()
        return WeightsSent(n_bytes=0, elapsed_ns=0)

    broadcaster._sender = cast("Sender", SimpleNamespace(send=send, end=sent.wait, members=[]))
    for step in range(3):
        (folder / f"v1.{step}").mkdir(parents=True)
    journal = cast("PolicyJournal", SimpleNamespace(lineage=1, published=[str(folder / "v1.2")]))
    publisher = Publisher(platform, journal, cast("Rank", None), folder, "policy", 1, broadcaster=broadcaster)
    group = Broadcast(group="g", address="127.0.0.1", port=1, members=[], backend="gloo", timeout_s=1.0)
    broadcaster.send(WeightManifest(path=str(folder / "v1.0"), shards=[], broadcast=group), Version(lineage=1, step=0))
    publisher._prune()
    assert sorted(path.name for path in folder.iterdir()) == ["v1.0", "v1.2"]
    sent.set()
    assert broadcaster._task is not None
    await broadcaster._task
    publisher._prune()
    assert [path.name for path in folder.iterdir()] == ["v1.2"]


async def test_a_folder_that_is_read_outlives_its_turn_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAIT_S", 3.0)
    root = tmp_path / "weights"
    settings = TransferSettings()
    source = WeightSource(SystemPlatform(), root, tmp_path, "trainer-0", settings)
    await source.start()
    platform = Clocked()
    source._platform = platform
    manifests = [write_folder(root / f"v1.{step}", sizes=(10,), n_shards=1) for step in range(8)]
    origin = Origin(source.url, (tmp_path / "weights.token").read_text(), 5.0)

    def read(step: int) -> None:
        with Connection(origin) as connection:
            connection.read(f"/v1.{step}/config.json", 0, 2)

    try:
        kept: list[list[str]] = []
        for step, manifest in enumerate(manifests):
            await source.offer(manifest, 2)
            kept.append(source.kept)
            if step < 3:
                await asyncio.to_thread(read, 0)
            platform.now_s += 1.0
        # Read from the first, until nobody waits any longer.
        assert kept[1:4] == [["v1.0", "v1.1"], ["v1.0", "v1.1", "v1.2"], ["v1.0", "v1.2", "v1.3"]]
        with pytest.raises(WeightsGoneError):
            await asyncio.to_thread(read, 0)
        assert kept[-1] == ["v1.6", "v1.7"]
        assert max(map(len, kept)) == 3
    finally:
        source._platform = SystemPlatform()
        await source.stop()
