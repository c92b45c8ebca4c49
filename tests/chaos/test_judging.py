"""The bars: each alone decides, and an audit's findings are counted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.counting import Turns
from tests.chaos.injection import Struck
from tests.chaos.judging import Recorded, n_problems, recovery_of, verdict
from tests.chaos.schedule import KINDS, Fault, schedule

TERMS = {"requested": 9, "graded": 8, "dropped": 1, "dead": 0, "in_flight": 0, "counted": 5, "discarded": 2, "queued": 1}


def an_audit() -> dict[str, Any]:
    return {
        "accounting": dict(TERMS),
        "accounting_by_purpose": {},
        "reasons": {},
        "staleness": {"max": 4},
        "eta": 4,
        "steps": 30,
        "empty_steps": 0,
        "refused": 0,
        "ok": True,
        "problems": [],
    }


def a_record() -> Recorded:
    turns = Turns(done=1000, asked_again=20, resumed_midway=3)
    turns.episodes.update(["a", "b"])
    return Recorded(
        requested={"a", "b"},
        turns=turns,
        engine_asks=1010,
        steps_repeated=4,
        accuracy={"before": 0.3, "after": 0.6},
        ended="completed",
        abandoned=2,
        restarts={},
        left_over=[],
    )


def struck(n: int) -> list[Struck]:
    return [Struck(fault, "driver-0", 1, 0.0, recovered_s=1.0) for fault in schedule(1, n, 8.0, {})]


def test_all_bars_hold() -> None:
    result = verdict(struck(100), a_record(), an_audit(), learns=True)
    assert result["ok"] and not result["failed"]
    assert (result["faults"], result["turns_regenerated"], result["regenerated_ratio"]) == (100, 20, 0.02)
    assert set(result["by_kind"]) == set(KINDS)


Spoil = Callable[[Recorded, dict[str, Any]], Any]
SPOILT: list[tuple[str, Spoil]] = [
    ("an episode that is not archived", lambda record, _: record.requested.add("c")),
    ("an episode archived twice", lambda record, _: record.turns.episodes.update(["a"])),
    ("a graded episode without its end", lambda record, _: record.turns.without_end.append("a")),
    ("an episode without outcome", lambda _, audit: audit["problems"].append("missing_outcome: episode a")),
    ("two outcomes", lambda _, audit: audit["problems"].append("double_outcome: episode a has 2 outcomes")),
    ("an episode in flight", lambda _, audit: audit["accounting"].update(in_flight=1, requested=10)),
    ("the first identity", lambda _, audit: audit["accounting"].update(requested=10)),
    ("the second identity", lambda _, audit: audit["accounting"].update(counted=6)),
    ("any problem of the audit", lambda _, audit: audit.update(ok=False)),
    ("staleness", lambda _, audit: audit["staleness"].update(max=5)),
    ("too few steps", lambda _, audit: audit.update(steps=9)),
    ("nothing learned", lambda record, _: record.accuracy.update(after=0.3)),
    ("no evaluation", lambda record, _: record.accuracy.update(after=None)),
    ("turns by facts", lambda record, _: setattr(record.turns, "asked_again", 51)),
    ("nothing resumed", lambda record, _: setattr(record.turns, "resumed_midway", 0)),
    ("a process left over", lambda record, _: record.left_over.append("python")),
]


@pytest.mark.parametrize("spoil", [pytest.param(spoil, id=name) for name, spoil in SPOILT])
def test_each_bar_alone_decides(spoil: Spoil) -> None:
    record, audit = a_record(), an_audit()
    spoil(record, audit)
    result = verdict(struck(100), record, audit, learns=True)
    assert not result["ok"] and len(result["failed"]) == 1, result["failed"]


def test_the_larger_count_of_repeated_turns_decides() -> None:
    record = a_record()
    record.turns.done = 900
    result = verdict(struck(100), record, an_audit(), learns=True)
    assert (result["turns_regenerated"], result["ok"]) == (110, False)


def test_a_rare_kind_fails_a_long_schedule_alone() -> None:
    few = [each for each in struck(100) if each.fault.kind != "kill_rank"]
    more = [Struck(Fault(0, "kill_tool", 0, 0.0), "tool-0", 1, 0.0, 1.0)] * (100 - len(few))
    assert verdict([*few, *more], a_record(), an_audit(), learns=True)["failed"] == ["fewer than 5 faults of ['kill_rank']"]
    assert verdict(few[:20], a_record(), an_audit(), learns=True)["ok"]


def test_bars_of_runs_whose_ranks_and_engines_alone_are_killed() -> None:
    killed = [Struck(Fault(n, "kill_engine", 0, 0.0), "engine-0", 1, 0.0, recovered_s=1.0) for n in range(3)]
    record = a_record()
    record.turns.tokens = 980
    good = replace(record, tokens_sampled=1000, idle_s=[0.5, 20.0, 1.0])
    result = verdict(killed, good, an_audit(), learns=False)
    assert result["ok"] and result["tokens_regenerated"] == 20 and result["trainer_idle_s"] == {"p50": 1.0, "max": 20.0}
    for bad in (replace(good, tokens_sampled=1001), replace(good, idle_s=[61.0]), replace(good, idle_s=[]), a_record()):
        assert not verdict(killed, bad, an_audit(), learns=False)["ok"]
    # A server of SGLang takes a minute to come up.
    slow = replace(good, idle_s=[100.0], engine="sglang")
    assert verdict(killed, slow, an_audit(), learns=False)["ok"]
    assert not verdict(killed, replace(slow, idle_s=[151.0]), an_audit(), learns=False)["ok"]
    other = [*killed, Struck(Fault(3, "kill_driver", 0, 0.0), "driver-0", 1, 0.0, recovered_s=1.0)]
    assert verdict(other, replace(good, tokens_sampled=2000), an_audit(), learns=False)["ok"]


def test_findings_are_counted_by_name() -> None:
    lines = ["missing_outcome: episode a", "missing_outcome: and 12 more", "double_outcome: x: y", "verdicts: missing_outcome"]
    assert n_problems(lines, ("missing_outcome",)) == 13
    assert n_problems(lines, ("double_outcome", "two_verdicts")) == 1


def test_percentiles_are_of_each_kind() -> None:
    found = [Struck(Fault(n, "kill_tool", 0, 0.0), "tool-0", 1, 0.0, recovered_s=float(n)) for n in range(1, 11)]
    found.append(Struck(Fault(11, "kill_driver", 0, 0.0), "driver-0", 1, 0.0, recovered_s=None))
    assert recovery_of(found) == {"kill_tool": {"p50": 5.0, "p99": 10.0, "n": 10}}
