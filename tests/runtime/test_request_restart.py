"""A core request outlives a lost connection: it is asked again, also of a listener that comes back later than who asks."""

import asyncio
import uuid

import pytest

from actors.runtime.broker import Broker
from actors.runtime.bus import Incoming
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import NoResponderError
from schemas import commands
from tests.runtime.facts import until
from tests.runtime.proxy import Proxy


async def test_a_request_is_asked_again_after_a_reconnect(broker: Broker) -> None:
    platform, run, heard = SystemPlatform(), f"t{uuid.uuid4().hex[:8]}", list[str]()

    async def answer(incoming: Incoming) -> None:
        heard.append(incoming.subject)
        await incoming.reply(commands.Received())

    async with Proxy(broker.port) as proxy:
        asking = await connect(f"nats://127.0.0.1:{proxy.port}", run, "tool", platform)
        answering = await connect(broker.url, run, "driver", platform)
        listening = await answering.subscribe(commands.Abort, "d", answer)
        await answering._wire.flush(5.0)
        proxy.deaf = True
        request = asyncio.create_task(asking.request(commands.Abort(request="a"), key="d", timeout_s=10.0))
        await until(lambda: len(heard) == 1)
        # The answer was lost, and so is the listener until a moment after the reconnect.
        await listening.drain(1.0)
        proxy.deaf = False
        proxy.cut()
        await until(lambda: asking.n_reconnects == 1)
        await asyncio.sleep(0.2)
        assert not request.done()
        await answering.subscribe(commands.Abort, "d", answer)
        assert isinstance(await request, commands.Received)
        assert len(heard) == 2
        with pytest.raises(NoResponderError):
            await answering.request(commands.Abort(request="a"), key="nobody", timeout_s=5.0)
        await asking.close()
        await answering.close()
