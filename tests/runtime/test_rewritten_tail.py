"""A broker that lost its tail and gave the sequences out again: a reader that comes back later must not read on."""

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from actors.runtime.broker import start_broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import StreamRewoundError
from tests.runtime.facts import call, until
from tests.runtime.proxy import Proxy


async def test_a_reader_notices_that_its_last_message_is_another_one(tmp_path: Path) -> None:
    platform, folder, synced = SystemPlatform(), tmp_path / "broker", tmp_path / "synced"
    broker = await start_broker(folder, platform)
    port = broker.port
    writer = await connect(broker.url, "r", "driver", platform)
    await writer.ensure_topology()
    for n in range(5):
        await writer.append(call("e1", n), "e1")
    await broker.stop()
    shutil.copytree(folder / "jetstream", synced)
    broker = await start_broker(folder, platform, port=port)
    async with Proxy(port) as proxy:
        reader = await connect(f"nats://127.0.0.1:{proxy.port}", "r", "viewer", platform)
        read: list[int] = []

        async def follow() -> None:
            async with aclosing(reader.read("trace")) as messages:
                async for message in messages:
                    read.append(message.sequence)

        following = asyncio.create_task(follow())
        for n in range(5, 10):
            await writer.append(call("e1", n), "e1")
        await until(lambda: len(read) == 10)
        proxy.deaf = True
        proxy.cut()
        broker.process.kill()
        await broker.process.wait()
        shutil.rmtree(folder / "jetstream")
        shutil.copytree(synced, folder / "jetstream")
        broker = await start_broker(folder, platform, port=port)
        for n in range(8):
            await writer.append(call("e2", n), "e2")
        proxy.deaf = False
        proxy.cut()
        with pytest.raises(StreamRewoundError):
            await asyncio.wait_for(following, 15.0)
        assert read == list(range(1, 11))
        await reader.close()
    await writer.close()
    await broker.stop()
