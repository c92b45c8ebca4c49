"""One broker for the whole session; every test has a run of its own on it."""

import dataclasses
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from actors.runtime.broker import Broker, start_broker
from actors.runtime.bus import Bus
from actors.runtime.jetstream import JetStreamBus, connect
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from actors.runtime.wire import header_block
from schemas import topology

ACK_WAIT_S = 0.6


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """A real server for the session."""
    held = await start_broker(tmp_path_factory.mktemp("broker"), SystemPlatform())
    yield held
    await held.stop()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues that deliver again after ACK_WAIT_S, with at most 8 messages out."""
    consumers = tuple(dataclasses.replace(row, ack_wait_s=ACK_WAIT_S, max_ack_pending=8) for row in topology.TOPOLOGY.consumers)
    monkeypatch.setattr(topology, "TOPOLOGY", dataclasses.replace(topology.TOPOLOGY, consumers=consumers))


class Harness:
    """Buses of one run on one adapter."""

    def __init__(self, kind: str, broker: Broker | None) -> None:
        self.kind = kind
        self.run = f"t{uuid.uuid4().hex[:10]}"
        self.platform = SystemPlatform(0)
        self.memory = MemoryBroker(self.platform)
        self._broker = broker
        self.buses: list[Bus] = []

    async def bus(self, actor: str = "driver") -> Bus:
        """A further connection."""
        if self._broker is None:
            bus: Bus = MemoryBus(self.memory, self.run, actor, self.platform)
        else:
            bus = await connect(self._broker.url, self.run, actor, self.platform)
        self.buses.append(bus)
        return bus

    async def inject(self, stream: str, subject: str, data: bytes) -> None:
        """Store bytes that no bus would send."""
        bus = self.buses[0]
        if isinstance(bus, JetStreamBus):
            await bus._publisher.publish(subject, data, header_block(Nats_Msg_Id=uuid.uuid4().hex), 5.0)
        else:
            self.memory.inject(self.run, stream, subject, data)

    async def send_core(self, subject: str, data: bytes) -> None:
        """Send bytes that are no message."""
        bus = self.buses[0]
        if isinstance(bus, JetStreamBus):
            await bus._wire.send(subject, data)
        else:
            for listener in self.memory.listeners(subject):
                listener.offer((subject, "", data, None))


@pytest.fixture(params=["jetstream", "memory"])
async def harness(request: pytest.FixtureRequest, broker: Broker) -> AsyncIterator[Harness]:
    """Both adapters in turn."""
    held = Harness(request.param, broker if request.param == "jetstream" else None)
    yield held
    for bus in held.buses:
        await bus.close()
