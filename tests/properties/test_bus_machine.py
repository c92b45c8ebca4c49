"""The bus machine on both adapters: in memory in virtual time, and on a real nats-server."""

import asyncio
import dataclasses
import itertools
import uuid
from typing import ClassVar

import pytest
from hypothesis.stateful import run_state_machine_as_test

from actors.runtime.broker import Broker
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from schemas import topology
from tests.properties.bus_machine import MAX_OUT, BusMachine
from tests.properties.counts import examples
from tests.runtime.conftest import broker as broker  # a fixture
from tests.sim.virtual import VirtualLoop, VirtualPlatform

ACK_WAIT_S = 0.4


@pytest.fixture(autouse=True)
def small_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues that deliver again soon, with few facts out."""
    rows = tuple(dataclasses.replace(row, ack_wait_s=ACK_WAIT_S, max_ack_pending=MAX_OUT) for row in topology.TOPOLOGY.consumers)
    monkeypatch.setattr(topology, "TOPOLOGY", dataclasses.replace(topology.TOPOLOGY, consumers=rows))


class InMemory(BusMachine):
    """The adapter of the simulation."""

    ack_wait_s = ACK_WAIT_S
    exact = True

    def open_loop(self) -> asyncio.Runner:
        self.names = (f"bus{n}" for n in itertools.count())
        return asyncio.Runner(loop_factory=VirtualLoop)

    async def connect(self) -> Bus:
        platform = VirtualPlatform(next(self.names), 0)
        if not hasattr(self, "broker"):
            self.broker = MemoryBroker(platform)
        return MemoryBus(self.broker, "r", "driver", platform)


class OnAServer(BusMachine):
    """The adapter of every real run."""

    ack_wait_s = ACK_WAIT_S
    exact = False
    url: ClassVar[str]

    def open_loop(self) -> asyncio.Runner:
        self.run_name = f"t{uuid.uuid4().hex[:10]}"
        return asyncio.Runner()

    async def connect(self) -> Bus:
        return await connect(self.url, self.run_name, "driver", SystemPlatform(0))


def test_the_bus_in_memory_keeps_its_promises() -> None:
    run_state_machine_as_test(InMemory, settings=examples(60, steps=50))


def test_the_bus_on_a_server_keeps_its_promises(broker: Broker) -> None:
    OnAServer.url = broker.url
    run_state_machine_as_test(OnAServer, settings=examples(5, steps=25))
