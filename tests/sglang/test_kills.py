"""Real training on SGLang: killed engines, servers and ranks lose nothing, and nothing is counted twice."""

import asyncio
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.chaos import injection
from tests.chaos.chaos import chaos
from tests.chaos.scale import SMOKE
from tests.chaos.schedule import schedule
from tests.sglang.serving import alive

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(2400)]
KINDS = ("kill_rank", "kill_engine", "kill_server")
"""There is one engine: whatever ends it ends all generation until it is back."""
SCALE = replace(SMOKE, engine="sglang", episode_deadline_s=900.0)


def servers() -> set[psutil.Process]:
    """Processes of SGLang that run now: it names them so."""
    return {process for process in psutil.process_iter() if process.name().startswith("sglang::")}


@pytest.mark.parametrize("each", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_engines_and_ranks_cost_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    monkeypatch.setenv("ASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(injection, "RECOVERY_TIMEOUT_S", 900.0)
    monkeypatch.setattr(injection, "BUSY_TIMEOUT_S", 600.0)
    before = servers()
    said: list[str] = []
    faults = schedule(5, each * len(KINDS), SCALE.lease_s, {}, KINDS, doubles=False)
    result = asyncio.run(chaos(tmp_path / "runs", SCALE, 5, faults, said.append))
    print("\n".join(said))
    print(result)
    assert result["ok"], (result["failed"], result["problems"], result["left_over"], said)
    assert result["by_kind"] == dict.fromkeys(sorted(KINDS), each)
    # Servers have counted, so that the bar on tokens that were generated again says something.
    assert result["tokens_sampled"] > result["turns_done"] > 0
    assert (result["lost"], result["double_counted"], result["nonterminal"]) == (0, 0, 0)
    assert not alive([*(servers() - before)])
