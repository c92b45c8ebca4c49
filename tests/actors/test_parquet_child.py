"""At the end of a run the recorder has its tables written; what prevents that is said and fails nothing."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from actors.runtime import parquet_child
from actors.runtime.actor import Context
from actors.runtime.parquet_child import write_parquet
from actors.runtime.platform import SystemPlatform, SystemProcess
from asearch.configuration.settings import ArchiveSettings, Settings
from schemas.events import RunEnded
from tests.actors.conftest import Stage


class Spawning(SystemPlatform):
    """Starts `python -c CODE` in the place of the command, and remembers what was asked for."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code
        self.asked: list[Sequence[str]] = []
        self.started: list[SystemProcess] = []

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> SystemProcess:
        self.asked.append(argv)
        process = await super().spawn([sys.executable, "-c", self.code], log_path=log_path)
        self.started.append(process)
        return process


async def context(stage: Stage, code: str = "pass", *, parquet: bool = True, has_ended: bool = True) -> tuple[Context, Spawning]:
    if has_ended:
        scheduler = await stage.connect("scheduler")
        await scheduler.append(RunEnded(id="end", run=stage.run, reason="completed"), stage.run)
    platform = Spawning(code)
    settings = msgspec.structs.replace(Settings(), archive=ArchiveSettings(parquet=parquet))
    bus = await stage.connect("recorder")
    return Context(stage.run, stage.folder, settings, bus, platform, "recorder-0"), platform


async def told(context: Context, timeout_s: float = 20.0) -> tuple[bool, list[str]]:
    """Whether the tables were written, and the commands that the log names."""
    with capture_logs() as lines:
        done = await write_parquet(context, structlog.get_logger(), timeout_s)
    return done, [line["command"] for line in lines if "command" in line]


async def test_command_is_run_when_the_run_has_ended(stage: Stage) -> None:
    made, platform = await context(stage)
    assert await told(made) == (True, [])
    (argv,) = platform.asked
    assert list(argv[3:7]) == ["archive", stage.run, "--runs", str(stage.folder.parent)]
    assert "--die-with-parent" in argv


@pytest.mark.parametrize("why", ["switched off", "not ended"])
async def test_nothing_is_started_where_nothing_is_wanted(stage: Stage, why: str) -> None:
    made, platform = await context(stage, parquet=why != "switched off", has_ended=why != "not ended")
    assert await told(made) == (False, [])
    assert platform.asked == []


async def test_failure_names_the_command_that_finishes_it(stage: Stage) -> None:
    made, _ = await context(stage, "raise SystemExit(2)")
    assert await told(made) == (False, [f"asearch archive {stage.run} --runs {stage.folder.parent}"])


async def test_slow_child_is_ended_and_the_command_named(stage: Stage) -> None:
    made, platform = await context(stage, "import time; time.sleep(600)")
    done, commands = await told(made, timeout_s=0.5)
    assert (done, len(commands)) == (False, 1)
    await platform.started[0].wait()
    with pytest.raises(ProcessLookupError):
        os.kill(platform.started[0].pid, 0)


async def test_missing_pyarrow_is_said_and_nothing_started(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_child, "has_parquet", lambda: False)
    made, platform = await context(stage)
    done, commands = await told(made)
    assert (done, len(commands), platform.asked) == (False, 1, [])
