"""What is purged lies in the archive on disk, not only in the page cache."""

from typing import Any

import pytest

from actors import recorder as module
from actors.recorder import Recorder
from actors.runtime.archive import LineFile
from tests.actors.conftest import Stage
from tests.runtime.facts import call, dropped, requested, until


async def test_the_archive_is_synced_between_a_line_and_the_purge_of_its_facts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.05)
    done: list[str] = []
    append, sync = LineFile.append, LineFile.sync

    def noted_append(file: LineFile, *given: Any, **named: Any) -> None:
        append(file, *given, **named)
        done.append("line")

    def noted_sync(file: LineFile) -> None:
        sync(file)
        done.append("sync")

    monkeypatch.setattr(LineFile, "append", noted_append)
    monkeypatch.setattr(LineFile, "sync", noted_sync)
    context = await stage.context("recorder-0")
    purge = context.bus.purge

    async def noted_purge(stream: str, **named: Any) -> int:
        gone = await purge(stream, **named)
        if gone:
            done.append(f"purge {stream}")
        return gone

    monkeypatch.setattr(context.bus, "purge", noted_purge)
    scheduler, driver = await stage.connect("scheduler"), await stage.connect("driver")
    held = Recorder(context)
    await stage.start(held)
    for episode in ("e1", "e2"):
        await scheduler.append(requested(episode, 0), episode)
        await driver.append(call(episode, 0), episode)
        await driver.append(dropped(episode), episode, expected=0)
        await until(lambda: done[-1:] == ["purge trace"] or "purge trace" in done[-4:])
        last_line = len(done) - 1 - done[::-1].index("line")
        assert "sync" in done[last_line : len(done) - 1 - done[::-1].index("purge trace")]
        done.clear()
    await stage.end(held)
