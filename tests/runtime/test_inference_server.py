"""An inference server is started, watched, started again within limits, and ended with all that it has started."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.runtime import inference_server as module
from actors.runtime.broker import free_port
from actors.runtime.inference_server import InferenceProcess
from actors.runtime.platform import SystemPlatform
from asearch.configuration.engine import EngineSettings
from asearch.engines.launch import Launch
from asearch.errors import EngineError

PROGRAM = Path(__file__).parents[1] / "engines" / "bare_server.py"


def bare(folder: Path, behaviour: str = "") -> Callable[[], Launch]:
    """Starts of a bare server, each on a port of its own."""

    def launch() -> Launch:
        port = free_port()
        return Launch([sys.executable, str(PROGRAM), str(port), str(folder / "journal"), behaviour], port=port)

    return launch


def settings(**changes: Any) -> EngineSettings:
    quick = {"start_timeout_s": 10.0, "health_interval_s": 0.05, "health_timeout_s": 0.3, "max_restarts": 2}
    return EngineSettings(**(quick | changes))


@asynccontextmanager
async def keeping(
    folder: Path, launch: Callable[[], Launch] | None, url: str = "", **changes: Any
) -> AsyncIterator[InferenceProcess]:
    excused = changes.pop("is_excused", lambda: False)
    keeper = InferenceProcess(SystemPlatform(), settings(**changes), folder / "server.log", launch, url, excused)
    try:
        async with asyncio.timeout(30):
            yield keeper
    finally:
        await keeper.stop()


def starts(folder: Path) -> list[int]:
    """Pids of the servers that were started, in order."""
    return [int(line.split()[1]) for line in (folder / "journal").read_text().splitlines() if line.startswith("start")]


async def test_a_server_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async with keeping(tmp_path, bare(tmp_path)) as keeper:
        await keeper.start()
        os.kill(starts(tmp_path)[-1], signal.SIGKILL)
        why = await keeper.failure()
        assert why == "the inference server ended with status -9"
        client = await keeper.restart(why)
        assert await client.health()
        assert keeper.n_starts == len(set(starts(tmp_path))) == 2


async def test_what_a_server_leaves_is_taken_away_once_it_is_dead(tmp_path: Path) -> None:
    taken: list[tuple[int, bool]] = []

    @dataclass(frozen=True)
    class Left:
        pid: int

        def remove(self) -> None:
            taken.append((self.pid, psutil.pid_exists(self.pid)))

    def launch() -> Launch:
        return replace(bare(tmp_path)(), left_by=lambda pid: [Left(pid)])

    async with keeping(tmp_path, launch) as keeper:
        await keeper.start()
        os.kill(starts(tmp_path)[0], signal.SIGKILL)
        await keeper.restart(await keeper.failure())
        first, second = starts(tmp_path)
        assert taken == [(first, False)]
        await keeper.stop()
    assert taken == [(first, False), (second, False)]


async def test_a_server_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    async with keeping(tmp_path, bare(tmp_path)) as keeper:
        await keeper.start()
        hung = starts(tmp_path)[-1]
        os.kill(hung, signal.SIGSTOP)
        why = await keeper.failure()
        assert "did not say 2 times in a row that it is well" in why
        await keeper.restart(why)
        assert not psutil.pid_exists(hung)
        assert len(starts(tmp_path)) == 2


async def test_silence_is_excused_while_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE_S", 0.1)
    excused = True
    async with keeping(tmp_path, bare(tmp_path), is_excused=lambda: excused) as keeper:
        await keeper.start()
        os.kill(starts(tmp_path)[-1], signal.SIGSTOP)
        failing = asyncio.create_task(keeper.failure())
        await asyncio.sleep(1.5)
        assert not failing.done()
        excused = False
        assert "well" in await failing


async def test_a_crash_loop_ends_with_an_error_that_names_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY_S", 0.01)
    async with keeping(tmp_path, bare(tmp_path, "refuses")) as keeper:
        with pytest.raises(EngineError, match="did not start") as first:
            await keeper.start()
        with pytest.raises(EngineError, match="failed 3 times in 600 s") as last:
            await keeper.restart("it did not start")
        for error in (first, last):
            assert str(tmp_path / "server.log") in str(error.value)
            assert "the kernels do not like this machine" in str(error.value)
            assert len(str(error.value)) < 2000
        assert keeper.n_starts == 3


async def test_a_server_that_is_not_ready_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANNOUNCE_S", 0.2)
    said: list[str] = []
    limits = settings(start_timeout_s=1.0)
    keeper = InferenceProcess(SystemPlatform(), limits, tmp_path / "server.log", bare(tmp_path, "loads"), say=said.append)
    with pytest.raises(EngineError, match=r"no server after 1 s \(engine.start_timeout_s\)"):
        await keeper.start()
    await keeper.stop()
    assert "the inference server, for" in said[0]
    assert not psutil.pid_exists(starts(tmp_path)[-1])


async def test_a_server_ends_with_the_processes_that_it_started(tmp_path: Path) -> None:
    async with keeping(tmp_path, bare(tmp_path, "leaves-a-child")) as keeper:
        await keeper.start()
        child = psutil.Process(int((tmp_path / "child").read_text()))
    await asyncio.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not psutil.pid_exists(starts(tmp_path)[-1])


async def test_a_server_whose_logprobs_are_not_the_models_own_is_refused(tmp_path: Path) -> None:
    async with keeping(tmp_path, bare(tmp_path, "tempered")) as owner:
        await owner.start()
        url = f"http://127.0.0.1:{psutil.Process(starts(tmp_path)[0]).net_connections()[0].laddr.port}"
        async with keeping(tmp_path, None, url) as keeper:
            with pytest.raises(EngineError, match=r"off by 1.00 at 5.*SGLANG_RETURN_ORIGINAL_LOGPROB=1"):
                await keeper.start()


async def test_a_server_that_runs_already_is_attached_to_and_left_running(tmp_path: Path) -> None:
    async with keeping(tmp_path, bare(tmp_path)) as owner:
        await owner.start()
        (pid,) = starts(tmp_path)
        url = f"http://127.0.0.1:{psutil.Process(pid).net_connections()[0].laddr.port}"
        async with keeping(tmp_path, None, url) as keeper:
            client = await keeper.start()
            assert await client.health()
        assert psutil.pid_exists(pid)
        async with keeping(tmp_path, None, "http://127.0.0.1:9", start_timeout_s=0.5) as keeper:
            with pytest.raises(EngineError, match=r"no server at http://127.0.0.1:9 after 0.5 s"):
                await keeper.start()


async def test_another_server_that_has_taken_the_port_is_not_talked_to(tmp_path: Path) -> None:
    port = free_port()
    other = Launch([sys.executable, str(PROGRAM), str(port), str(tmp_path / "other"), "another"], port=port, name="another")
    async with keeping(tmp_path, lambda: other) as first:
        await first.start()
        ours = Launch([sys.executable, "-c", "import time; time.sleep(60)"], port=port, name="ours")
        async with keeping(tmp_path, lambda: ours, start_timeout_s=1.0) as keeper:
            with pytest.raises(EngineError, match="no server after 1 s"):
                await keeper.start()
