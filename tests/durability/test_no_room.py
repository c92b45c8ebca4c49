"""No room: the broker's disk is full, or a stream is at its bound. Appends say so, wait, and go on when there is room."""

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec
import pytest

from actors.runtime.broker_watch import BrokerWatch, store_trouble
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.patience import append_patiently
from actors.runtime.platform import SystemPlatform
from actors.runtime.workspace import Workspace
from asearch.errors import NotStoredError, StreamFullError
from tests.durability.load import stored_ids
from tests.durability.power import loop_store
from tests.runtime.facts import requested, until

STORE_BYTES, FILLER_BYTES = 192 << 20, 120 << 20
FACT_BYTES = 400_000


async def _until_unstored(bus: Bus) -> dict[int, str]:
    """Append until the broker stores no more; what it has acknowledged."""
    acked: dict[int, str] = {}
    last = 0
    for n in range(1000):
        fact = msgspec.structs.replace(requested("e", n), label="x" * FACT_BYTES)
        try:
            last = await bus.append(fact, "e", expected=last, timeout_s=2.0)
        except NotStoredError as error:
            assert "full" in str(error)
            assert "free space there" in str(error)
            return acked
        acked[last] = fact.id
    raise AssertionError("the disk was never full")


async def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_space(tmp_path: Path) -> None:
    platform, said = SystemPlatform(), list[str]()
    with loop_store(tmp_path, STORE_BYTES) as store:
        filler = store.path / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, FILLER_BYTES)
        workspace = Workspace(store.path / "runs")
        url, _ = await workspace.broker(platform, run="r")
        bus = await connect(url, "r", "scheduler", platform)
        await workspace.ensure_streams(bus)
        assert store_trouble(workspace.broker_folder) is None
        watch = BrokerWatch(workspace, platform, said.append, lambda: workspace.ensure_streams(bus))
        watching = asyncio.create_task(watch.run())
        try:
            acked = await _until_unstored(bus)
            await until(lambda: len(said) > 0)
            trouble = store_trouble(workspace.broker_folder)
            assert trouble is not None
            assert str(workspace.broker_folder) in trouble
            last, heard = max(acked), list[str]()
            waiting = asyncio.create_task(append_patiently(bus, requested("e", 5000), "e", expected=last, waits_for=heard.append))
            filler.unlink()
            assert await asyncio.wait_for(waiting, 20.0) == last + 1
            await until(lambda: any("restarted" in line for line in said))
            found = await stored_ids(bus, "plan")
            assert {sequence: found.get(sequence) for sequence in acked} == acked
            assert store_trouble(workspace.broker_folder) is None
            assert not watching.done()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await bus.close()
            await workspace.release(None, "r")


async def test_a_broker_that_died_on_a_full_disk_is_started_when_there_is_space(tmp_path: Path) -> None:
    platform, said = SystemPlatform(), list[str]()
    with loop_store(tmp_path, STORE_BYTES) as store:
        workspace = Workspace(store.path / "runs")
        _, broker = await workspace.broker(platform, run="r")
        assert broker is not None
        filler = store.path / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * (1 << 20))
        watch = BrokerWatch(workspace, platform, said.append, _nothing)
        try:
            for _ in range(3):
                broker.process.kill()
                await broker.process.wait()
                await watch.look()
            assert "is full" in said[0]
            filler.unlink()
            await watch.look()
            assert said[-1] == "the broker's disk has space again: the broker was restarted"
            assert await workspace.running_broker() is not None
            assert sum("is full" in line for line in said) == 1
        finally:
            await workspace.release(None, "r")


async def _nothing() -> None:
    """Nothing to settle."""


async def test_a_stream_at_its_bound_is_waited_for(tmp_path: Path) -> None:
    platform = SystemPlatform()
    workspace = Workspace(tmp_path)
    url, _ = await workspace.broker(platform, run="r")
    bus = await connect(url, "r", "scheduler", platform)
    try:
        await bus.ensure_topology({"plan": 20_000})
        last = 0
        with pytest.raises(StreamFullError, match="purge it or raise its bound"):
            for n in range(100):
                last = await bus.append(requested("e", n), "e", expected=last)
        heard: list[str] = []
        waiting = asyncio.create_task(append_patiently(bus, requested("e", 200), "e", expected=last, waits_for=heard.append))
        await until(lambda: len(heard) >= 2)
        assert "takes no more" in heard[0]
        await bus.purge("plan", up_to_sequence=last - 1)
        assert await asyncio.wait_for(waiting, 20.0) == last + 1
        assert heard[-1] == ""
    finally:
        await bus.close()
        await workspace.release(None, "r")
