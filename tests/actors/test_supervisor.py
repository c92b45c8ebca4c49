"""The supervisor with real processes."""

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from actors.runtime import supervisor as module
from actors.runtime.platform import SystemPlatform
from actors.runtime.supervisor import ChildFailedError, ChildSpec, Supervisor
from tests.runtime.facts import until

NOTE = "import sys, signal, time, pathlib\nlog = pathlib.Path(sys.argv[1])\n"
PATIENT = NOTE + (
    "def end(*_):\n    log.open('a').write(sys.argv[2] + ' ends\\n'); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\nlog.open('a').write(sys.argv[2] + ' begins\\n')\ntime.sleep(60)\n"
)
STUBBORN = NOTE + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nlog.open('a').write('up\\n')\ntime.sleep(60)\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY_S", 0.02)


def spec(name: str, script: str, folder: Path, **more: object) -> ChildSpec:
    argv = [sys.executable, "-S", "-c", script, str(folder / "notes"), name]
    return ChildSpec(name, argv, folder / f"{name}.log", **more)  # type: ignore[arg-type]


async def test_a_child_that_fails_too_often_takes_the_run_down(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    failing = spec("bad", "import sys; sys.exit('no luck today')", tmp_path, max_restarts=2)
    with pytest.raises(ChildFailedError, match=r"bad failed 3 times in 60 s \(status 1\)") as caught:
        async with asyncio.timeout(20.0):
            await held.run([spec("good", PATIENT, tmp_path), failing])
    assert "no luck today" in str(caught.value)
    assert held.children["good"][0] is None
    assert held.children["bad"] == (None, 2)


async def test_failures_long_ago_do_not_count(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    script = NOTE + "n = len(log.read_text()) if log.exists() else 0\nlog.write_text('x' * (n + 1))\nsys.exit(n < 4)\n"
    async with asyncio.timeout(20.0):
        await held.run([spec("late", script, tmp_path, max_restarts=1, period_s=0.01, may_end=True)])
    assert held.is_done("late")
    assert held.children["late"] == (None, 4)


async def test_children_stop_in_stages(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    notes = tmp_path / "notes"
    specs = [spec(name, PATIENT, tmp_path, stage=stage) for name, stage in (("late", 2), ("first", 0), ("a", 1), ("b", 1))]
    task = asyncio.create_task(held.run(specs))
    await until(lambda: notes.exists() and notes.read_text().count("begins") == 4, 20.0)
    assert all(pid is not None for pid, _ in held.children.values())
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    ends = [line.split()[0] for line in notes.read_text().splitlines() if "ends" in line]
    assert (ends[0], sorted(ends[1:3]), ends[3]) == ("first", ["a", "b"], "late")
    assert all(pid is None for pid, _ in held.children.values())


async def test_a_child_that_must_not_end_is_started_again(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    with pytest.raises(ChildFailedError, match=r"quiet failed 2 times in 60 s \(status 0\)"):
        async with asyncio.timeout(20.0):
            await held.run([spec("quiet", "", tmp_path, max_restarts=1)])


async def test_a_second_cancellation_kills_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    task = asyncio.create_task(held.run([spec("deaf", STUBBORN, tmp_path, grace_s=60.0)]))
    await until(lambda: (tmp_path / "notes").exists(), 20.0)
    task.cancel()
    await asyncio.sleep(0.1)
    assert held.children["deaf"][0] is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5.0):
            await task
    assert held.children["deaf"] == (None, 0)


async def test_a_child_is_started_when_it_is_ready(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    ready = tmp_path / "ready"
    ready.write_text("of an earlier process")
    script = "import sys, time, pathlib\ntime.sleep(0.2)\npathlib.Path(sys.argv[1]).with_name('ready').touch()\ntime.sleep(60)\n"
    await held.start(spec("server", script, tmp_path, ready_file=ready))
    assert ready.read_text() == ""
    await held.stop()
    with pytest.raises(ChildFailedError, match="broken did not start"):
        await Supervisor(SystemPlatform()).start(spec("broken", "", tmp_path, ready_file=ready))


async def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    held = Supervisor(SystemPlatform())
    task = asyncio.create_task(held.run([spec("deaf", STUBBORN, tmp_path, grace_s=0.2)]))
    await until(lambda: (tmp_path / "notes").exists(), 20.0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(5.0):
            await task
    assert held.children["deaf"] == (None, 0)


async def test_a_child_that_is_removed_leaves_no_folder_of_its_own(tmp_path: Path) -> None:
    held, notes, kept = Supervisor(SystemPlatform()), tmp_path / "notes", tmp_path / "pulled"
    kept.mkdir()
    specs = [spec("stays", PATIENT, tmp_path), spec("goes", PATIENT, tmp_path, keeps=kept)]
    task = asyncio.create_task(held.run(specs))
    await until(lambda: notes.exists() and notes.read_text().count("begins") == 2, 20.0)
    held.remove("goes")
    await until(lambda: not kept.exists(), 20.0)
    assert "goes ends" in notes.read_text()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
