"""Which facts of an episode's TRACE count, how long it was held, and how often it was taken in vain."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asearch.agents.recorded import elapsed_ns, n_idle_takes, valid_facts
from schemas.events import DeadlineNeared, EpisodeRequested, EpisodeTaken, Event, RunEnded, ToolRequested, ToolReturned
from schemas.records import Task


def taken(attempt: int, driver: str = "a", at_ns: int = 0) -> EpisodeTaken:
    request = EpisodeRequested(
        id=f"r{attempt}",
        episode="e",
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task=Task(id="t", question="?"),
        seed=0,
        progress=0,
        recipe_hash="h",
        attempt=attempt,
    )
    name = f"taken-{attempt}-{driver}"
    return EpisodeTaken(id=name, at_ns=at_ns, episode="e", driver=driver, attempt=attempt, request=request)


def returned(name: str, attempt: int = -1, driver: str = "", at_ns: int = 0) -> ToolReturned:
    return ToolReturned(id=name, at_ns=at_ns, episode="e", attempt=attempt, driver=driver, call="c", turn=0)


def asked(name: str) -> ToolRequested:
    return ToolRequested(
        id=name, episode="e", call="c", turn=0, tool="search", argument="x", task="t", member=0, reply_to="nobody"
    )


def names(events: list[Event | None]) -> list[str]:
    return [fact.id for fact in valid_facts(events)]


def test_facts_of_an_earlier_holder_do_not_count() -> None:
    events = [taken(0), returned("x", 0), taken(1, "b"), returned("late", 0), returned("y", 1), returned("later", 0, "a")]
    assert names(events) == ["taken-0-a", "x", "taken-1-b", "y"]


def test_of_two_drivers_that_answer_the_same_request_the_one_that_is_recorded_counts() -> None:
    """A lost tail gives sequences out again, so that a driver may append behind the `EpisodeTaken` of another one."""
    assert names([taken(0, "b"), returned("x", 0, "b"), returned("y", 0, "a"), returned("z", 0, "b")]) == ["taken-0-b", "x", "z"]


def test_facts_that_name_nobody_count_and_what_is_no_fact_does_not() -> None:
    ended = RunEnded(id="end", run="r", reason="completed")
    assert names([returned("w"), None, taken(0), returned("x"), ended, returned("y", 0)]) == ["w", "taken-0-a", "x", "y"]
    assert names([returned("x", 0), taken(0)]) == ["taken-0-a"]


def test_an_episode_is_taken_by_growing_attempts_only() -> None:
    assert names([taken(2), taken(1, "b"), returned("x", 1, "b"), taken(2, "c"), returned("y", 2, "a")]) == ["taken-2-a", "y"]


def test_a_repeated_fact_counts_once() -> None:
    assert names([taken(0), returned("x", 0), returned("x", 0), taken(0)]) == ["taken-0-a", "x"]


EVENTS = st.lists(
    st.one_of(
        st.none(),
        st.builds(taken, st.integers(0, 3), st.sampled_from("ab")),
        st.builds(returned, st.sampled_from("uvwxyz"), st.integers(-1, 3), st.sampled_from(["", "a", "b"])),
    ),
    max_size=12,
)


@given(EVENTS, st.data())
def test_the_selection_of_a_prefix_is_a_prefix_of_the_selection(events: list[Event | None], data: Any) -> None:
    """A driver compares what it knows with a stream that was cut: what counted before still counts."""
    cut = data.draw(st.integers(0, len(events)))
    before, whole = valid_facts(events[:cut]), valid_facts(events)
    assert whole[: len(before)] == before
    assert valid_facts(whole) == whole


def test_the_wall_clock_of_an_episode_stands_still_while_nobody_holds_it() -> None:
    facts = [taken(0, at_ns=100), returned("x", at_ns=130), taken(1, at_ns=1000), returned("y", at_ns=1007)]
    assert elapsed_ns(facts) == 37
    assert elapsed_ns(facts[:1]) == 0
    assert elapsed_ns([]) == 0


def test_clocks_that_go_back_or_say_nothing_cost_an_episode_nothing() -> None:
    back = [taken(0, at_ns=100), returned("x", at_ns=90), returned("y", at_ns=95)]
    assert elapsed_ns(back) == 5
    silent = [taken(0), returned("x", at_ns=10**18), returned("y"), returned("z", at_ns=10**18 + 4)]
    assert elapsed_ns(silent) == 4
    assert elapsed_ns([taken(0, at_ns=5), taken(1), returned("x", at_ns=10**18)]) == 0


def test_asking_for_a_tool_again_and_again_is_no_progress() -> None:
    assert n_idle_takes([taken(0), asked("q0"), taken(1), asked("q1"), taken(2)]) == 3
    assert n_idle_takes([taken(0), returned("x"), taken(1), asked("q1")]) == 1
    assert n_idle_takes([taken(0), taken(1), DeadlineNeared(id="d", episode="e")]) == 0
