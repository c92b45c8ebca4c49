"""A run whose objective learns from groups of equal rewards, on two ranks: they are counted, the audit agrees."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.looked_at import asearch, command

SETTINGS = {
    "trainer.objective": "ppo",
    "trainer.entropy_coefficient": "0.01",
    "trainer.minibatches": "2",
    "trainer.data_parallel": "2",
    "rewards.overlong_tokens": "50",
    "rewards.overlong_cache_tokens": "20",
    "warmstart.steps": "60",
    "run.groups_per_step": "4",
    "run.group_size": "3",
    "evaluation.before": "false",
    "evaluation.after": "false",
    "viewer.enabled": "false",
}
STEPS = 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_groups_of_equal_rewards_are_counted_under_ppo(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    place = ("--runs", root, "--run", "r", "--seed", 3, "--steps", STEPS)
    options = [part for name, value in SETTINGS.items() for part in ("-s", f"{name}={value}")]
    done = subprocess.run(command("train", "toy", *place, *options), capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]

    rewards: dict[str, list[float]] = {}
    fates: set[str] = set()
    for episode in asearch(root, "episodes", "r", "--json").lines:
        rewards.setdefault(episode["group"], []).append(episode["reward"])
        fates.add(episode["fate"])
    assert any(max(values) == min(values) for values in rewards.values())
    assert min(map(min, rewards.values())) < 0
    assert fates == {"counted"}

    audit = asearch(root, "audit", "r", "--json")
    assert audit.status == 0, audit.out + audit.err
    assert (audit.lines[0]["problems"], audit.lines[0]["reasons"]["discarded"]) == ([], {})
    assert audit.lines[0]["accounting"]["counted"] == STEPS * 12

    replayed = asearch(root, "replay", "--all", "r", "--json").lines[-1]
    assert (replayed["identical"], replayed["graded_again"]) == (STEPS * 12, STEPS * 12)
