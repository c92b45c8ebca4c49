"""Who is a member of a group for broadcasts: an engine that was started again since is not."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from actors.runtime.bus import Incoming
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import Process, SystemPlatform
from actors.runtime.transfer.broadcasting import TAKES, Broadcaster, Life, Sender
from asearch.configuration.transfer import TransferSettings
from schemas.commands import Heartbeat
from schemas.records import WeightManifest


class Beat:
    """A heartbeat as it arrives."""

    def __init__(self, name: str, pid: int = 1, n_starts: float = 1.0) -> None:
        gauges = {TAKES: 1.0, "n_server_starts": n_starts}
        self.message = Heartbeat(actor="engine", actor_id=name, pid=pid, at_ns=0, state="ready", gauges=gauges)


@pytest.mark.parametrize("again", [{"pid": 2}, {"n_starts": 2.0}])
async def test_an_engine_that_was_started_again_is_not_in_the_group(
    again: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), "run", "trainer-0", platform)
    held = Broadcaster(bus, platform, tmp_path / "log", TransferSettings())
    made: list[dict[str, Life]] = []

    async def make(lives: dict[str, Life]) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        held._sender = Sender(cast("Process", SimpleNamespace(returncode=None)), ours, f"group-{len(made)}", lives)
        made.append(lives)

    monkeypatch.setattr(held, "_make", make)

    async def offered(*beats: Beat) -> list[str] | None:
        for beat in beats:
            await held._heard(cast("Incoming", beat))
        broadcast = held.offer(WeightManifest(path="", shards=[])).broadcast
        if held._task is not None:
            await held._task
        return None if broadcast is None else broadcast.members

    both = Beat("engine-1"), Beat("engine-0")
    assert await offered(*both) is None
    assert await offered(*both) == ["engine-0", "engine-1"]
    assert await offered(Beat("engine-1", **again)) is None
    assert await offered() == ["engine-0", "engine-1"]
    assert len(made) == 2
