"""What faults cost, by hand-made facts."""

from pathlib import Path
from typing import Any

import pytest

from actors.runtime.launching import tokens_sampled
from asearch.engines.embedded.tally import Tally
from schemas.events import Event, StepTrained, TrainerClaimed
from tests.chaos.counting import Turns, count_episode, fenced, idle_s, steps_repeated


def taken(attempt: int) -> dict[str, Any]:
    return {"type": "episode_taken", "attempt": attempt}


def tokens(request: str, finish: str | None = "stop", **more: object) -> dict[str, Any]:
    found = {"type": "tokens_generated", "request": request, **more}
    return found if finish is None else {**found, "finish": finish}


ASKED: dict[str, Any] = {"type": "tool_requested"}
RETURNED: dict[str, Any] = {"type": "tool_returned"}
FINISHED: dict[str, Any] = {"type": "episode_finished"}


@pytest.mark.parametrize(
    ("facts", "done", "asked_again", "resumed"),
    [
        pytest.param([taken(0), tokens("a"), ASKED, RETURNED, tokens("b"), FINISHED], 2, 0, 0, id="undisturbed"),
        pytest.param([taken(0), tokens("a", n_asked=3), FINISHED], 1, 2, 0, id="its driver asked three times"),
        pytest.param([taken(0), tokens("a", None, n_asked=2), tokens("a", n_asked=2), FINISHED], 1, 1, 0, id="in two chunks"),
        pytest.param([taken(0), taken(1), tokens("a"), FINISHED], 1, 1, 0, id="taken over before its first tokens"),
        pytest.param([taken(0), tokens("a"), ASKED, taken(1), RETURNED, tokens("b"), FINISHED], 2, 0, 1, id="in a tool call"),
        pytest.param([taken(0), tokens("a"), ASKED, RETURNED, taken(1), tokens("b"), FINISHED], 2, 1, 1, id="in a generation"),
        pytest.param([taken(0), tokens("a", None), taken(1), tokens("a"), FINISHED], 1, 1, 1, id="half way through its tokens"),
        pytest.param([taken(0), tokens("a", None, n_asked=2), taken(1), tokens("a", n_asked=2)], 1, 3, 1, id="each life counts"),
        pytest.param([taken(0), tokens("a"), taken(1), FINISHED], 1, 0, 1, id="before the finish"),
        pytest.param([taken(0), taken(1), taken(2), tokens("a")], 1, 2, 0, id="two takes without a fact"),
        pytest.param([taken(0), tokens("a"), ASKED, RETURNED, taken(1)], 1, 1, 0, id="given up after the takeover"),
        pytest.param([taken(0), tokens("a"), ASKED, taken(1)], 1, 0, 0, id="given up in a tool call"),
    ],
)
def test_turns(facts: list[dict[str, Any]], done: int, asked_again: int, resumed: int) -> None:
    turns = Turns()
    count_episode(facts, turns)
    assert (turns.done, turns.asked_again, turns.resumed_midway) == (done, asked_again, resumed)


def test_tokens_that_count_are_summed() -> None:
    turns = Turns()
    runs = [{"version": "1.0", "start": 0, "end": 5}, {"version": "1.1", "start": 5, "end": 9}]
    count_episode([taken(0), tokens("a", None, versions=runs), tokens("a", versions=runs[:1]), FINISHED], turns)
    assert turns.tokens == 14


def test_facts_of_a_replaced_attempt_do_not_count() -> None:
    facts = [taken(0), tokens("a", attempt=0), taken(1), tokens("b", attempt=0), tokens("b", attempt=1), tokens("c")]
    assert [fact.get("request") for fact in fenced(facts)] == [None, "a", None, "b", "c"]


def test_steps_that_a_claim_makes_void_were_repeated() -> None:
    def claim(lineage: int, step: int) -> Event:
        return TrainerClaimed(id=f"c{lineage}", model="policy", lineage=lineage, step=step, checkpoint=None, trainer="t")

    def step(lineage: int, number: int) -> Event:
        return StepTrained(
            id=f"s{lineage}-{number}",
            model="policy",
            lineage=lineage,
            step=number,
            verdicts=[],
            staleness={},
            n_tokens_trained=0,
            n_tokens_masked_stale=0,
            n_tokens_discarded=0,
            empty=False,
            metrics={},
        )

    facts = [claim(1, 0), step(1, 0), step(1, 1), step(1, 2), claim(2, 2), step(2, 2), claim(3, 0), step(3, 0)]
    assert steps_repeated(facts) == 1 + 3
    assert steps_repeated(facts[:4]) == 0


def test_idle_time_is_what_lies_between_two_steps() -> None:
    def step(number: int, end_s: int, took_s: int) -> Event:
        return StepTrained(
            id=f"s{number}",
            at_ns=end_s * 10**9,
            elapsed_ns=took_s * 10**9,
            model="policy",
            lineage=1,
            step=number,
            verdicts=[],
            staleness={},
            n_tokens_trained=0,
            n_tokens_masked_stale=0,
            n_tokens_discarded=0,
            empty=False,
            metrics={},
        )

    claimed = TrainerClaimed(id="c", model="policy", lineage=2, step=1, checkpoint=None, trainer="t")
    assert idle_s([step(0, 10, 2), step(1, 15, 3), claimed, step(1, 40, 4)]) == [2.0, 21.0]
    assert idle_s([step(0, 10, 2)]) == []


def test_tokens_that_servers_sampled_are_summed_over_engines(tmp_path: Path) -> None:
    assert tokens_sampled(tmp_path) == 0
    for name, n in (("engine-0", 5), ("engine-1", 7)):
        Tally(tmp_path / "tallies" / name).write(n)
    assert tokens_sampled(tmp_path) == 12
