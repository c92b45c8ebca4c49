"""A few faults on a small run: the whole path of `just chaos`, in the fast suite."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos.chaos import chaos
from tests.chaos.scale import SMOKE
from tests.chaos.schedule import schedule

KINDS = ("kill_driver", "kill_rank", "kill_broker")


def test_a_small_run_survives_a_few_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said: list[str] = []
    faults = schedule(1, len(KINDS), SMOKE.lease_s, {"driver": 2}, KINDS, doubles=False)
    result = asyncio.run(chaos(tmp_path / "runs", SMOKE, 1, faults, said.append))
    assert result["ok"], (result["failed"], result["problems"], result["left_over"], said)
    assert result["by_kind"] == dict.fromkeys(sorted(KINDS), 1)
    assert result["restarts"]["trainer-0"] >= 1
    assert all(found["n"] == 1 for found in result["recovery_s"].values())
    assert result["turns_done"] > result["accounting"]["graded"]
