"""Scripted episodes through all actors."""

from pathlib import Path

import msgspec
import pytest

from schemas.codec import decode_event
from schemas.events import AnyEvent, EpisodeFinished, EpisodeRequested, EpisodeTaken, Event, ToolReturned
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


def archived(sim: Simulation) -> dict[str, list[Event]]:
    """The facts of every archived episode."""
    lines = (sim.folder / "archive" / "episodes.jsonl").read_bytes().splitlines()
    entries = [msgspec.json.decode(line, type=Line) for line in lines]
    assert len({entry.episode for entry in entries}) == len(entries)
    return {entry.episode: entry.facts for entry in entries}


class Line(msgspec.Struct):
    """A line of the archive."""

    episode: str
    facts: list[AnyEvent]  # type: ignore[valid-type]


def test_a_driver_that_dies_is_replaced_and_its_episodes_go_on(tmp_path: Path) -> None:
    sim = Simulation(tmp_path, seed=3, n_drivers=2, crashes=(("driver-0", 4.0), ("driver-1", 30.0))).run()
    assert sim.ended.reason == "completed"
    assert sim.check()["dropped"] == 0
    again = [facts for facts in archived(sim).values() if sum(isinstance(fact, EpisodeTaken) for fact in facts) > 1]
    went_on = [facts for facts in again if not isinstance(facts[1], EpisodeTaken)]
    assert went_on, "no episode had facts of its own before it was taken over"
    for facts in archived(sim).values():
        assert isinstance(facts[-1], EpisodeFinished)
        calls = [fact.call for fact in facts if isinstance(fact, ToolReturned)]
        assert len(calls) == len(set(calls))
    asked = [event for event in map(decode_event, sim.history("plan")) if isinstance(event, EpisodeRequested)]
    assert any(event.attempt > 0 for event in asked)


@pytest.mark.parametrize("seed", range(3))
def test_double_deliveries_and_lost_acknowledgements_change_no_account(tmp_path: Path, seed: int) -> None:
    sim = Simulation(tmp_path, seed=seed, fault_rate=0.05, p_outage=0.1, p_break=0.1).run()
    assert sim.faults.n_played > 20
    terms = sim.check()
    assert terms["dropped"] > 0
    assert sim.ended.reason == "completed"


@pytest.mark.parametrize("victim", ["scheduler-0", "trainer-0", "engine-0", "grader-0", "tool-0", "recorder-0"])
def test_any_actor_may_die(tmp_path: Path, victim: str) -> None:
    sim = Simulation(tmp_path, seed=5, crashes=((victim, 3.0), (victim, 12.0), (victim, 21.3))).run()
    assert sim.ended.reason == "completed"
    sim.check()
