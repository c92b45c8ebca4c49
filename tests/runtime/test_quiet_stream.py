"""A reader of a stream on which nothing happens for longer than a pull request lives still hears the next message."""

import asyncio
import uuid
from contextlib import aclosing

import pytest

from actors.runtime import pull
from actors.runtime.broker import Broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from tests.runtime.facts import requested

EXPIRES_S = 2.2
"""The broker refuses a request that lives for less than two heartbeats."""


async def test_a_request_that_expires_is_made_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "EXPIRES_S", EXPIRES_S)
    bus = await connect(broker.url, f"t{uuid.uuid4().hex[:10]}", "scheduler", SystemPlatform())
    try:
        await bus.ensure_topology()
        async with aclosing(bus.read("plan")) as messages, asyncio.timeout(12.0):
            for name in ("e-0", "e-1"):
                waiting = asyncio.ensure_future(anext(messages))
                await asyncio.sleep(1.5 * EXPIRES_S)
                sequence = await bus.append(requested(name, 0), name)
                assert (await waiting).sequence == sequence
    finally:
        await bus.close()
