"""The report of hand-written runs, number by number."""

import random
from pathlib import Path

import pytest

from asearch.evaluation.report import RunReport
from asearch.evaluation.sums import wilson
from tests.evaluation.stories import Story, two_steps


def report_of(story: Story) -> RunReport:
    report = RunReport()
    for stream, sequence, event in story.told:
        report.fold(stream, sequence, event)
    return report


def test_accounting_of_two_steps() -> None:
    result = report_of(two_steps()).to_json()
    assert result["accounting_by_purpose"] == {
        "eval": {
            "requested": 6,
            "graded": 5,
            "dropped": 1,
            "dead": 0,
            "in_flight": 0,
            "counted": 5,
            "discarded": 0,
            "queued": 0,
        },
        "train": {
            "requested": 14,
            "graded": 10,
            "dropped": 2,
            "dead": 2,
            "in_flight": 0,
            "counted": 6,
            "discarded": 3,
            "queued": 1,
        },
    }
    assert result["accounting"] == {
        "requested": 20,
        "graded": 15,
        "dropped": 3,
        "dead": 2,
        "in_flight": 0,
        "counted": 11,
        "discarded": 3,
        "queued": 1,
    }
    assert result["identities_broken"] == []
    assert result["unmatched"] == {"outcomes": 0, "verdicts": 0}
    assert result["reasons"] == {
        "dropped": {"engine_outage": 1, "run_ended": 1, "tool_outage": 1},
        "dead": {"no_progress": 2},
        "discarded": {"group_incomplete": 1, "no_signal": 2},
        "discarded_groups": {"group_incomplete": 2, "no_signal": 1},
    }
    assert result["groups"] == {"admitted": {"eval": 6, "train": 7}, "refills": 2, "asked_again": 1}


def test_learning_of_two_steps() -> None:
    result = report_of(two_steps()).to_json()
    assert (result["steps"], result["empty_steps"], result["policy_version"]) == (2, 0, "1.2")
    assert (result["eta"], result["rule"]) == (4, "mask")
    assert result["staleness"] == {"max": 1, "mean": round(12 / 57, 4), "histogram": {"0": 45, "1": 12}}
    assert result["tokens"] == {
        "generated": 105,
        "trained": 57,
        "masked_stale": 3,
        "discarded": 35,
        "queued": 10,
        "dead_lineage": 0,
        "evaluation": 39,
    }
    first, second = report_of(two_steps()).curve()
    assert (first["n"], first["reward"], first["accuracy"], first["searches_per_episode"]) == (6, 0.5, 0.3333, 1.5)
    assert (second["n"], second["reward"], second["accuracy"], second["searches_per_episode"]) == (3, 0.6667, 0.6667, 1.0)


def test_evaluations_leave_out_what_was_dropped() -> None:
    report = report_of(two_steps())
    before, after = report.evaluation("before"), report.evaluation("after")
    assert (before["n"], before["accuracy"], before["reads_per_episode"]) == (3, 0.3333, 0.0)
    assert (after["n"], after["accuracy"], after["dropped"], after["requested"]) == (2, 1.0, 1, 3)
    assert (after["searches_per_episode"], after["reads_per_episode"], after["read_share"]) == (1.5, 1.0, 1.0)
    by_hop = before["by_hop"]
    assert isinstance(by_hop, dict)
    assert {hops: part["accuracy"] for hops, part in by_hop.items()} == {"1": 0.0, "2": 1.0, "3": 0.0}


def test_idle_leaves_out_the_wait_for_the_first_batch() -> None:
    report = report_of(two_steps())
    # first update 1 s, then 1 s of publishing, 2 s of waiting and 1 s of updating
    assert report.journal.idle_fraction() == pytest.approx(2 / 5)
    assert RunReport().journal.idle_fraction() is None


def test_a_restarted_trainer_voids_the_steps_it_takes_again() -> None:
    story = Story()
    story.start()
    for slot in range(2):
        story.admit(f"t-{slot}-0", slot)
        story.grade(f"t-{slot}-0-0", 1.0)
        story.grade(f"t-{slot}-0-1", 0.0)
    verdicts = [("t-0-0", 2, None), ("t-1-0", 2, None)]
    story.train(0, verdicts, staleness={0: 40})
    story.claim(2, 0)
    report = report_of(story)
    assert report.accounts.terms("train")["queued"] == 4
    assert report.accounts.terms("train")["counted"] == 0
    assert report.accounts.broken() == []
    story.train(0, verdicts, staleness={0: 40}, lineage=2)
    again = report_of(story).to_json()
    assert again["accounting"]["counted"] == 4  # type: ignore[index]
    assert again["tokens"]["trained"] == 40  # type: ignore[index]
    assert (again["steps"], again["policy_version"], again["lineages"]) == (1, "2.1", 2)


def test_what_does_not_fit_is_shown() -> None:
    story = two_steps()
    report = report_of(story)
    graded = next(event for event in story.outcomes if event.id == "outcome-t-0-0-0")
    report.fold("outcomes", len(story.outcomes) + 1, graded)
    assert report.accounts.unmatched() == {"outcomes": 1, "verdicts": 0}
    story.train(2, [("t-4-0", 2, None)], staleness={0: 1})
    assert report_of(story).accounts.unmatched() == {"outcomes": 0, "verdicts": 1}


def test_any_interleaving_of_the_streams_gives_the_same_report() -> None:
    story = two_steps()
    expected = report_of(story).to_json()
    for seed in range(50):
        rng, report = random.Random(seed), RunReport()
        waiting = {stream: [each for each in story.told if each[0] == stream] for stream in ("plan", "outcomes", "policy")}
        while any(waiting.values()):
            stream = rng.choice([name for name, facts in waiting.items() if facts])
            number = rng.randrange(1, len(waiting[stream]) + 1)
            for told in waiting[stream][:number]:
                report.fold(*told)
                report.fold(*told)
                assert report.accounts.broken() == []
            del waiting[stream][:number]
        assert report.to_json() == expected


def test_the_score_interval() -> None:
    assert wilson(0, 0) is None
    low, high = wilson(27, 30) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(0.7438, abs=1e-4), pytest.approx(0.9654, abs=1e-4))
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))


@pytest.mark.parametrize("story", [two_steps(), Story()], ids=["a run", "nothing"])
def test_the_picture_is_drawn(story: Story, tmp_path: Path) -> None:
    path = tmp_path / "new" / "curves.png"
    report_of(story).picture(path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
