"""A connection that only looks: it reads every run of the broker, and the broker refuses it everything else."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from actors.runtime.broker import start_broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError, NoResponderError
from schemas.commands import CancelEpisodes
from schemas.events import RunEnded

ENDED = RunEnded(id="ended-r", run="r", reason="completed")


async def test_it_reads_every_stream_and_writes_nothing(tmp_path: Path) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform)
    try:
        operator = await connect(broker.url, "r", "operator", platform)
        await operator.ensure_topology()
        await operator.append(ENDED, "r")
        looking = await connect(broker.url, "r", "viewer-0", platform, only_looks=True)
        async with aclosing(looking.read("plan", follow=False)) as plan:
            assert [stored.event for stored in [each async for each in plan]] == [ENDED]
        assert (await looking.get_last(RunEnded, "r")) is not None
        assert len(await looking.read_key("plan", "r")) == 1
        assert (await looking.consumer_info("driver")).n_pending == 0
        for stream in ("plan", "trace", "outcomes", "policy", "blobs", "dead"):
            assert (await looking.stream_info(stream)).max_bytes > 0
        with pytest.raises(BusError):
            await looking.append(ENDED, "r", timeout_s=1.0)
        with pytest.raises((BusError, TimeoutError)):
            async with asyncio.timeout(1.0):
                await looking.purge("plan")
        with pytest.raises((BusError, NoResponderError)):
            await looking.request(CancelEpisodes(episodes=["e"]), key="drivers", timeout_s=0.5)
        assert (await operator.stream_info("plan")).n_messages == 1
        await looking.close()
        await operator.close()
    finally:
        await broker.stop()
