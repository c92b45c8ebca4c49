"""Who uses the one broker of a workspace, and who ends it."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec

from actors.runtime.broker import answers
from actors.runtime.platform import SystemPlatform
from actors.runtime.workspace import BrokerFile, BrokerUser, Process, Workspace


def known(workspace: Workspace) -> BrokerFile:
    return msgspec.json.decode((workspace.broker_folder / "broker.json").read_bytes(), type=BrokerFile)


async def test_the_last_run_stops_the_broker_and_a_dead_one_is_revived(tmp_path: Path) -> None:
    workspace, platform = Workspace(tmp_path), SystemPlatform()
    url, first = await workspace.broker(platform, run="a")
    assert first is not None
    assert await workspace.broker(platform, run="b") == (url, None)
    await workspace.release(first, "a")
    assert await answers(first.port)
    assert await workspace.stop_orphan() is None
    os.kill(first.process.pid, signal.SIGKILL)
    await first.process.wait()
    assert await workspace.revive_broker(platform)
    assert not await workspace.revive_broker(platform)
    assert await answers(first.port)
    assert [user.run for user in known(workspace).users] == ["b"]
    await workspace.release(None, "b")
    assert not await answers(first.port)
    assert await workspace.running_broker() is None


async def test_a_broker_of_dead_users_is_an_orphan(tmp_path: Path) -> None:
    workspace, platform = Workspace(tmp_path), SystemPlatform()
    _, started = await workspace.broker(platform, run="a")
    assert started is not None
    gone = BrokerUser("a", Process(os.getpid(), 0.0))
    held = msgspec.structs.replace(known(workspace), users=[gone])
    (workspace.broker_folder / "broker.json").write_bytes(msgspec.json.encode(held))
    assert await workspace.stop_orphan() == started.process.pid
    async with asyncio.timeout(5.0):
        await started.process.wait()
    assert await workspace.stop_orphan() is None


async def test_a_reader_that_finds_a_live_run_without_its_broker_starts_it_where_the_run_looks_for_it(tmp_path: Path) -> None:
    workspace, platform = Workspace(tmp_path / "runs"), SystemPlatform()
    url, first = await workspace.broker(platform, run="a")
    assert first is not None
    first.process.kill()
    await first.process.wait()
    again, started = await workspace.broker(platform)
    assert again == url and started is not None
    await workspace.release(started, "reader")
    assert await workspace.running_broker() is not None, "the run still needs it"
    await workspace.release(None, "a")
    assert await workspace.running_broker() is None
