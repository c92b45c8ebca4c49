"""How long each way of listening and writing takes to work again, from the start of the new server."""

import asyncio
from pathlib import Path

import pytest

from actors.runtime.broker import free_port, start_broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError
from schemas import commands
from tests.runtime.facts import until
from tests.runtime.test_broker_loss import Traffic, restart

LIMIT_S = 10.0


@pytest.mark.parametrize("how", ["kill", pytest.param("terminate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_restarts", [1, pytest.param(8, marks=pytest.mark.slow)])
async def test_each_kind_of_reader_and_the_appends_are_back(tmp_path: Path, how: str, n_restarts: int, record_property) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path, platform, port=free_port())
    writer = await connect(broker.url, "r", "scheduler", platform)
    reader = await connect(broker.url, "r", "driver", platform)
    traffic = Traffic(writer, reader)
    await traffic.start()
    clock = asyncio.get_running_loop().time
    for number in range(n_restarts):
        broker = await restart(broker, how)
        since_s, first = clock(), dict[str, float]()
        counts = {
            "append": lambda: len(traffic.acked),
            "in order": lambda: len(traffic.read),
            "queue": lambda: len(traffic.worked),
            "core": lambda: len(traffic.heard),
        }
        before = {kind: count() for kind, count in counts.items()}
        while len(first) < len(counts):
            for kind, count in counts.items():
                if count() > before[kind]:
                    first.setdefault(kind, round(clock() - since_s, 2))
            assert clock() - since_s < LIMIT_S, f"only {first} after {LIMIT_S:g} s"
            try:
                await writer.publish(commands.Abort(request="a"), key="e1")
            except BusError:
                continue
            finally:
                await asyncio.sleep(0.02)
        record_property(f"recovery_s_{number}", first)
    traffic.stop.set()
    *writing, following = traffic.tasks
    await asyncio.gather(*writing)
    last = await writer.last_sequence("plan")
    await until(lambda: len(traffic.read) >= last and len(traffic.worked) >= last, 60.0)
    assert sorted(traffic.acked) == list(range(1, last + 1))
    following.cancel()
    await writer.close()
    await reader.close()
    await broker.stop()
