"""Scripted episodes through all actors."""

from pathlib import Path

import pytest

from schemas.codec import decode_event
from schemas.events import EpisodeRequested, EpisodeTaken
from tests.sim.simulation import Simulation


def test_a_run_completes_and_its_accounts_agree(tmp_path: Path) -> None:
    sim = Simulation(tmp_path).run()
    assert (sim.ended.reason, sim.ended.message) == ("completed", "")
    terms = sim.check()
    assert terms["dropped"] == terms["dead"] == 0
    assert sim.terms["steps"] == 4
    assert sim.terms["staleness"]["max"] <= 2
    assert sim.terms["accounting_by_purpose"]["eval"]["graded"] == 8


def test_the_same_seed_gives_the_same_log_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        Simulation(tmp_path / name, seed=seed, fault_rate=0.01).run() for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.log == again.log
    assert first.hash == again.hash
    assert other.hash != first.hash
    other.check()
