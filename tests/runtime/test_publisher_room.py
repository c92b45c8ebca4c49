"""Appends that wait for room among those in flight have a deadline too, and are let go when the connection is closed."""

import asyncio
from pathlib import Path

import pytest

from actors.runtime import publisher
from actors.runtime.broker import start_broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError, NotStoredError
from tests.runtime.facts import call, until


async def test_an_append_that_waits_for_room_keeps_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "MAX_IN_FLIGHT", 4)
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform)
    bus = await connect(broker.url, "r", "driver", platform)
    await bus.ensure_topology()
    broker.process.kill()
    await broker.process.wait()
    held = [asyncio.create_task(bus.append(call("e", n), "e", timeout_s=30.0)) for n in range(4)]
    await until(lambda: bus.gauges()["n_appends_in_flight"] == 4)
    begun_s = platform.monotonic()
    with pytest.raises(NotStoredError, match="4 appends before it are not acknowledged; the broker is not connected"):
        await bus.append(call("e", 5), "e", timeout_s=0.3)
    assert platform.monotonic() - begun_s < 5.0
    waiting = asyncio.create_task(bus.append(call("e", 6), "e", timeout_s=30.0))
    await asyncio.sleep(0)
    await bus.close()
    async with asyncio.timeout(5.0):
        for task in (*held, waiting):
            with pytest.raises(BusError, match="closed"):
                await task
