"""What a local run is made of, by its settings."""

from pathlib import Path

import pytest

from actors.runtime.local_run import LocalRun
from actors.runtime.platform import SystemPlatform
from actors.runtime.roster import actors_of
from actors.runtime.workspace import Workspace
from asearch.configuration.loading import load_settings
from asearch.errors import ConfigError


def test_the_settings_say_how_many_of_each_kind() -> None:
    assert [name for _, name in actors_of(load_settings("toy"))] == [
        *("trainer-0", "engine-0", "grader-0", "tool-0", "driver-0", "recorder-0", "scheduler-0", "viewer-0")
    ]
    many = load_settings("toy", ("actors.drivers=3", "actors.tools=2", "actors.graders=2", "engine.count=2"))
    names = [name for _, name in actors_of(many)]
    assert [name for name in names if name.startswith("driver")] == ["driver-0", "driver-1", "driver-2"]
    assert len(names) == len(set(names)) == 13
    assert "viewer-0" not in [name for _, name in actors_of(load_settings("toy", ("viewer.enabled=false",)))]
    with pytest.raises(ConfigError, match=r"actors\.drivers must be at least 1"):
        load_settings("toy", ("actors.drivers=0",))


def test_every_process_may_be_started_again_as_often_as_the_run_says(tmp_path: Path) -> None:
    local = LocalRun(Workspace(tmp_path), "many", load_settings("toy"), SystemPlatform(), print, max_restarts=77)
    assert {child.max_restarts for child in local.children()} == {77}
    assert [child.name for child in local.children()] == [name for _, name in actors_of(local.settings)]


def test_engines_that_fail_slowly_are_counted_over_longer(tmp_path: Path) -> None:
    """Else a server that never comes up would be started again without end."""

    def periods(*overrides: str) -> dict[str, float]:
        local = LocalRun(Workspace(tmp_path), "slow", load_settings("toy", overrides), SystemPlatform(), print)
        return {child.name: child.period_s for child in local.children()}

    assert set(periods().values()) == {60.0}
    slow = periods("engine.kind=sglang", "engine.start_timeout_s=200")
    assert slow.pop("engine-0") == 60.0 + 5 * 200.0
    assert set(slow.values()) == {60.0}


async def test_a_run_without_sglang_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asearch.engines.sglang.launch.ENVIRONMENT", Path("nowhere") / "python")
    local = LocalRun(Workspace(tmp_path), "none", load_settings("toy", ("engine.kind=sglang",)), SystemPlatform(), print)
    with pytest.raises(ConfigError, match=r"sh infra/sglang/setup\.sh"):
        async with local.started():
            pass
    assert not local.run_dir.exists()
