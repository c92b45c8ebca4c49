"""Brokers on stores whose power can be cut."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas import topology
from tests.durability.power import PoweredBroker, loop_store, powered_broker

ACK_WAIT_S = 1.0


@pytest_asyncio.fixture
async def powered(tmp_path: Path) -> AsyncIterator[PoweredBroker]:
    """A server whose power can be cut."""
    with loop_store(tmp_path) as store:
        held = await powered_broker(store)
        yield held
        await held.stop()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues that deliver again after ACK_WAIT_S."""
    consumers = tuple(dataclasses.replace(row, ack_wait_s=ACK_WAIT_S) for row in topology.TOPOLOGY.consumers)
    monkeypatch.setattr(topology, "TOPOLOGY", dataclasses.replace(topology.TOPOLOGY, consumers=consumers))
