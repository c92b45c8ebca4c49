"""An episode is the fold of its facts: whoever folds them, in however many lives, and however its tokens were cut."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.agents.episode import Agent, DeadlineNear, EpisodeState, Fact, FactError, GeneratedTokens, ToolReplied
from asearch.agents.recorded import fold
from asearch.agents.registry import make_agent
from asearch.agents.segments import segments
from asearch.agents.transcript import transcript
from schemas.records import VersionRun
from tests.agents.agent_scenes import COMPACT, MERGES, ByteTokenizer, Play, start_of
from tests.properties.counts import examples

PLAYS = st.builds(
    lambda seed, **changes: Play(start_of(COMPACT, **changes), seed),
    seed=st.integers(0, 10**9),
    read_search=st.booleans(),
    context=st.sampled_from(["shorten_pages", "append_all"]),
    max_turns=st.integers(2, 12),
    max_new_tokens=st.integers(8, 60),
)


def agent_of(play: Play) -> Agent:
    """An agent that shares nothing with the one that played."""
    return make_agent(play.start.settings, ByteTokenizer(MERGES))


@examples(40)
@given(PLAYS, st.data())
def test_any_number_of_lives_come_to_the_same_end(play: Play, data: Any) -> None:
    """Each life folds what is recorded, asks for what is pending, and records some more before it dies."""
    cuts = data.draw(st.lists(st.integers(0, len(play.facts)), max_size=5).map(sorted))
    for cut in cuts:
        agent = agent_of(play)
        state = fold(agent, play.start, play.facts[:cut])
        assert state == play.states[cut]
        assert agent.pending(state) == play.agent.pending(play.states[cut])
    assert fold(agent_of(play), play.start, play.facts) == play.state


@examples(40)
@given(PLAYS, st.data())
def test_a_fact_that_is_recorded_already_is_refused(play: Play, data: Any) -> None:
    """The deadline says the same thing twice; every other fact moves the episode on exactly once."""
    cut = data.draw(st.integers(1, len(play.facts)))
    again = data.draw(st.sampled_from(play.facts[:cut]))
    agent, state = agent_of(play), play.states[cut]
    if isinstance(again, DeadlineNear) or (isinstance(again, GeneratedTokens) and not again.ids):
        return
    with pytest.raises(FactError):
        agent.apply(state, again)


@examples(40)
@given(PLAYS, st.data())
def test_a_fact_that_is_missing_is_noticed(play: Play, data: Any) -> None:
    """The log is prefix-closed: with a hole in it the rest does not fit."""
    moving = [
        n
        for n, fact in enumerate(play.facts[:-1])
        if isinstance(fact, ToolReplied) or (isinstance(fact, GeneratedTokens) and fact.ids)
    ]
    if not moving:
        return
    hole = data.draw(st.sampled_from(moving))
    with pytest.raises(FactError):
        fold(agent_of(play), play.start, [*play.facts[:hole], *play.facts[hole + 1 :]])


def recut(facts: list[Fact], sizes: list[int]) -> list[Fact]:
    """The same tokens in other pieces: an engine that streams in other portions."""
    found: list[Fact] = []
    for fact in facts:
        if not isinstance(fact, GeneratedTokens) or len(fact.ids) < 8:
            found.append(fact)
            continue
        n = len(fact.ids) // 4
        at = sizes[len(found) % len(sizes)] % (n - 1) + 1
        found += [_part(fact, 0, at, last=False), _part(fact, at, n, last=True)]
    return found


def _part(fact: GeneratedTokens, start: int, end: int, last: bool) -> GeneratedTokens:
    versions = tuple(
        VersionRun(version=run.version, start=max(run.start, start) - start, end=min(run.end, end) - start)
        for run in fact.versions
        if run.start < end and run.end > start
    )
    return GeneratedTokens(
        request=fact.request,
        offset=fact.offset + start,
        ids=fact.ids[4 * start : 4 * end],
        logprobs=fact.logprobs[4 * start : 4 * end],
        versions=versions,
        finish=fact.finish if last else None,
    )


@examples(40)
@given(PLAYS, st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_how_tokens_were_cut_changes_nothing(play: Play, sizes: list[int]) -> None:
    state: EpisodeState = fold(agent_of(play), play.start, recut(play.facts, sizes))
    assert segments(state) == segments(play.state)
    assert transcript(state) == transcript(play.state)
