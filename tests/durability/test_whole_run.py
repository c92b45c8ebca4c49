"""The broker of a whole run is killed, stopped, or loses its power: every actor works again within 10 s, and the sums agree."""

import asyncio
import random
from pathlib import Path

import pytest

from actors.runtime.broker import free_port, start_broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from tests.durability.power import PoweredBroker
from tests.durability.whole_run import RUN, WholeRun
from tests.runtime.facts import until

AGAIN_S = 10.0
MANY = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 11)]


@pytest.mark.parametrize("how", ["kill", pytest.param("terminate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_restarts", [1, pytest.param(5, marks=pytest.mark.slow)])
async def test_every_actor_works_again_after_a_restart(tmp_path: Path, how: str, n_restarts: int, record_property) -> None:
    platform = SystemPlatform()
    broker = await start_broker(tmp_path / "broker", platform, port=free_port())
    bus = await connect(broker.url, RUN, "supervisor", platform)
    await bus.ensure_topology()
    run = WholeRun(broker.url, tmp_path / "run", steps=2 + 3 * (n_restarts - 1))
    try:
        await run.begin(bus)
        for number in range(n_restarts):
            await run.until_outcomes(4 + 20 * number)
            before = await run.effects()
            if how == "kill":
                broker.process.kill()
                await broker.process.wait()
            else:
                await broker.stop()
            since_s = asyncio.get_running_loop().time()
            broker = await start_broker(broker.folder, platform, port=broker.port)
            record_property(f"recovery_s_{number}", await run.recovery_s(before, since_s, AGAIN_S))
        await run.until_ended(120.0)
        accounting = await run.check()
        assert accounting["graded"] > 0
        assert run.deaths == []
    finally:
        await run.close()
        await bus.close()
        await broker.stop()


@pytest.mark.parametrize("seed", [0, *MANY])
async def test_a_run_goes_on_from_what_a_power_cut_left(
    powered: PoweredBroker, tmp_path: Path, seed: int, record_property
) -> None:
    chance = random.Random(seed)
    bus = await connect(powered.url, RUN, "supervisor", SystemPlatform())
    await powered.ensure_streams(bus)
    run = WholeRun(powered.url, tmp_path / "run", steps=3 if seed else 2)
    try:
        await run.begin(bus)
        await run.until_outcomes(chance.randrange(1, 20 if seed else 10))
        if chance.random() < 0.6:
            await asyncio.to_thread(powered.store.write_back)
            await asyncio.sleep(chance.uniform(0.05, 1.5))
        counted = await run.n_outcomes()
        trace = (await bus.stream_info("trace")).last_sequence
        await powered.cut()
        await powered.start()
        await until(lambda: bus.n_reconnects == 1)
        left = (await bus.stream_info("trace")).last_sequence
        assert await run.n_outcomes() >= counted
        await powered.ensure_streams(bus)
        record_property("lost_trace", max(0, trace - left))
        ended = await run.until_ended(120.0)
        assert ended.reason == "completed"
        await run.check()
        # TRACE alone may have been rewound, and only who follows it may have begun anew for that.
        assert {name for name, _ in run.deaths} <= {"recorder-0"}, run.deaths
    finally:
        await run.close()
        await bus.close()
