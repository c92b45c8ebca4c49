"""The real platform."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from actors.runtime.platform import SystemPlatform


async def test_clocks_ids_and_seeded_randomness() -> None:
    one, two = SystemPlatform(5), SystemPlatform(5)
    began = one.monotonic()
    await one.sleep(0.01)
    assert one.monotonic() - began >= 0.009
    assert one.now_ns() > 1_600_000_000 * 10**9
    assert one.random.random() == two.random.random()
    assert len({one.new_id() for _ in range(1000)}) == 1000
    await one.fault("anything")


async def test_processes_log_end_and_are_killed(tmp_path: Path) -> None:
    platform = SystemPlatform()
    log = tmp_path / "logs" / "child.log"
    script = "import os, sys; print(os.environ.get('A')); print('bad', file=sys.stderr); sys.exit(3)"
    process = await platform.spawn([sys.executable, "-c", script], env={"A": "b"}, log_path=log)
    assert await process.wait() == process.returncode == 3
    assert sorted(log.read_text().split()) == ["b", "bad"]
    process.kill()
    sleeper = await platform.spawn([sys.executable, "-c", "import time; time.sleep(60)"])
    assert os.getsid(sleeper.pid) == sleeper.pid
    sleeper.terminate()
    async with asyncio.timeout(10):
        assert await sleeper.wait() == -signal.SIGTERM


async def test_descriptors_are_passed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    script = f"import os; os.write({write_end}, b'hello')"
    process = await SystemPlatform().spawn([sys.executable, "-c", script], pass_fds=(write_end,))
    os.close(write_end)
    await process.wait()
    assert os.read(read_end, 10) == b"hello"
    os.close(read_end)
