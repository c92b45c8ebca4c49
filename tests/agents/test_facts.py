"""Facts that do not fit, partial tokens, tags, and the way from events to facts."""

import msgspec
import pytest
from agent_scenes import COMPACT, MERGES, ByteTokenizer, agent_of, found, start_of
from hypothesis import given
from hypothesis import strategies as st

from asearch.agents.episode import (
    Agent,
    EpisodeStart,
    EpisodeState,
    FactError,
    Finished,
    GeneratedTokens,
    GenerateRequest,
    TokenGapError,
    ToolCall,
    ToolReplied,
)
from asearch.agents.packed import column, pack_ids, pack_logprobs, unpack_ids
from asearch.agents.parse import Action, first_action, last_tag, thinking_after
from asearch.agents.recorded import fact_of, fold
from asearch.agents.recorded import start_of as start_of_request
from asearch.agents.segments import segments
from schemas.events import EpisodeRequested, TokensGenerated, ToolReturned
from schemas.records import Task, Version, VersionRun

V1, V2 = Version(lineage=0, step=1), Version(lineage=0, step=2)


def tokens(request: str, offset: int, text: str, finish: str | None = None, version: Version = V1) -> GeneratedTokens:
    ids = ByteTokenizer().encode(text)
    return GeneratedTokens(
        request=request,
        offset=offset,
        ids=pack_ids(ids),
        logprobs=pack_logprobs([-1.0] * len(ids)),
        versions=(VersionRun(version=version, start=0, end=len(ids)),) if ids else (),
        finish=finish,  # pyright: ignore[reportArgumentType]
    )


def begun(**changes: object) -> tuple[EpisodeStart, Agent, EpisodeState, GenerateRequest]:
    start = start_of(COMPACT, **changes)
    agent = agent_of(start)
    state, (request,) = agent.begin(start)
    assert isinstance(request, GenerateRequest)
    return start, agent, state, request


def test_an_aborted_call_goes_on_with_the_tokens_held() -> None:
    _, agent, state, request = begun()
    state, none = agent.apply(state, tokens(request.id, 0, " look </think>"))
    assert none == ()
    [pending] = agent.pending(state)
    state, (resumed,) = agent.apply(state, tokens(request.id, 14, " <sea", "abort"))
    assert isinstance(resumed, GenerateRequest) and isinstance(pending, GenerateRequest)
    assert (resumed.id, resumed.prompt, resumed.n_held) == (request.id, request.prompt, 19)
    assert resumed.input_bytes == request.prompt + pack_ids(list(b" look </think> <sea"))
    assert resumed.max_new_tokens == request.max_new_tokens - 19
    assert len({request.seed, pending.seed, resumed.seed}) == 3
    state, (call,) = agent.apply(state, tokens(request.id, 19, "rch> q </search>", "stop", V2))
    assert call == ToolCall(id="e1:t0", turn=0, tool="search", argument="q")
    [segment] = segments(state)
    assert [(run.version, run.end - run.start) for run in segment.versions] == [(V1, 19), (V2, 16)]


def test_an_abort_after_the_last_token_completes_the_call() -> None:
    _, agent, state, request = begun()
    _, (done,) = agent.apply(state, tokens(request.id, 0, " </think> <answer> x </answer>", "abort"))
    assert done == Finished(status="answered", answer="x")
    _, (done,) = agent.apply(state, tokens(request.id, 0, "t" * 200, "abort"))
    assert done == Finished(status="malformed")


def test_gaps_overlaps_and_strangers_are_refused() -> None:
    _, agent, state, request = begun()
    state, _ = agent.apply(state, tokens(request.id, 0, "abc"))
    for offset in (0, 2, 4):
        with pytest.raises(TokenGapError):
            agent.apply(state, tokens(request.id, offset, "x"))
    good = tokens(request.id, 3, "xy")
    wrong = [
        msgspec.structs.replace(good, request="e1:g1"),
        msgspec.structs.replace(good, logprobs=b"\0\0\0\0"),
        msgspec.structs.replace(good, logprobs=pack_logprobs([-1.0, float("nan")])),
        msgspec.structs.replace(good, versions=()),
        msgspec.structs.replace(good, versions=(VersionRun(version=V1, start=1, end=2),)),
        tokens(request.id, 3, "x" * 300),
        ToolReplied(call="e1:t0", result=found()),
    ]
    for fact in wrong:
        with pytest.raises(FactError):
            agent.apply(state, fact)
    assert agent.apply(state, good)[1] == ()


def test_events_become_the_same_facts() -> None:
    start, agent, _, request = begun()
    text = " </think> <search> q </search>"
    fact = tokens(request.id, 0, text, "stop")
    event = TokensGenerated(
        id="1",
        episode="e1",
        request=request.id,
        turn=0,
        offset=0,
        columns={"ids": column("u4", fact.ids), "logprobs": column("f4", fact.logprobs)},
        versions=list(fact.versions),
        finish="stop",
    )
    assert fact_of(event) == fact
    reply = ToolReturned(id="2", episode="e1", call="e1:t0", turn=0, result=found("x"))
    facts = [recorded for recorded in (fact_of(event), fact_of(reply)) if recorded is not None]
    (pending,) = agent.pending(fold(agent, start, facts))
    assert isinstance(pending, GenerateRequest) and pending.turn == 1
    requested = EpisodeRequested(
        id="3", episode="e1", group="g", member=0, members=1, slot=0, purpose="train",
        task=Task(id="t", question="Who?"), seed=0, progress=0, recipe_hash="",
    )  # fmt: skip
    assert start_of_request(requested, COMPACT) == start


def test_a_stop_string_that_ends_inside_a_token_stays_in_the_tokens() -> None:
    start = start_of()
    agent = agent_of(start, MERGES)
    state, (request,) = agent.begin(start)
    assert isinstance(request, GenerateRequest)
    ids = ByteTokenizer(MERGES).encode(" </think> <search> q </search>\n")
    assert ids[-1] >= 300
    fact = GeneratedTokens(
        request=request.id,
        offset=0,
        ids=pack_ids(ids),
        logprobs=pack_logprobs([-1.0] * len(ids)),
        versions=(VersionRun(version=V1, start=0, end=len(ids)),),
        finish="stop",
    )
    state, (call,) = agent.apply(state, fact)
    assert isinstance(call, ToolCall) and call.argument == "q"
    state, (again,) = agent.apply(state, ToolReplied(call=call.id, result=found("x")))
    assert isinstance(again, GenerateRequest)
    assert unpack_ids(again.prompt)[len(request.prompt_ids) :][: len(ids)] == ids


def test_the_last_match_of_the_first_kind_is_the_action() -> None:
    both = ("search", "access")
    assert first_action("<answer>z</answer><search>a</search><search> b </search>", both) == Action("search", "b")
    assert first_action("<access>u</access><answer>z</answer>", both) == Action("access", "u")
    assert first_action("<access>u</access><answer>z</answer>", ("search",)) == Action("answer", "z")
    assert first_action("<search>a <search>b</search> <search>", both) == Action("search", "b")
    assert first_action("<answer></answer>", both) == Action("answer", "")
    assert first_action("</search> <search>", both) is None
    assert last_tag("<search>a</search> </search>", "search") == "a"
    assert thinking_after(" a </think> <think> b", False)
    assert not thinking_after("x", False)


@given(st.lists(st.sampled_from(["<search>", "</search>", "<answer>", "</answer>", "<think>", "a", " "]), max_size=12))
def test_tags_are_found_where_they_are_closed(parts: list[str]) -> None:
    text = "".join(parts)
    found_tag = last_tag(text, "search")
    if found_tag is not None:
        assert "<search>" not in found_tag and "</search>" not in found_tag
        assert found_tag in text
    else:
        opening = text.find("<search>")
        assert opening < 0 or "</search>" not in text[opening:]
