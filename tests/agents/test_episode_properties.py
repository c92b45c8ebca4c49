"""What holds for every episode, whatever the policy writes, the tools return and the engine breaks off."""

import msgspec
import numpy as np
from agent_scenes import COMPACT, MERGES, ByteTokenizer, Play, start_of
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.agents.episode import EpisodeStart, GenerateRequest
from asearch.agents.packed import unpack_ids
from asearch.agents.recorded import fold
from asearch.agents.registry import make_agent
from asearch.agents.segments import segments
from asearch.agents.transcript import transcript
from schemas.records import Segment

STARTS = st.builds(
    lambda seed, **changes: (seed, msgspec.structs.replace(start_of(COMPACT, **changes), seed=seed)),
    seed=st.integers(0, 10**9),
    read_search=st.booleans(),
    on_malformed=st.sampled_from(["end", "continue", "continue"]),
    context=st.sampled_from(["shorten_pages", "append_all"]),
    max_turns=st.integers(2, 30),
    max_new_tokens=st.integers(8, 60),
    max_context_tokens=st.integers(80, 6000),
    page_chunk_chars=st.integers(40, 600),
    short_chars=st.integers(0, 30),
    forced_turns=st.integers(0, 1),
    forced_tokens=st.sampled_from([0, 40]),
    max_malformed=st.just(1000),
)
MANY = settings(max_examples=150, deadline=None)


def generated_ids(segment: Segment) -> list[int]:
    ids = np.frombuffer(segment.columns["ids"].data, "<u4")
    mask = np.frombuffer(segment.columns["mask"].data, "u1").astype(bool)
    return ids[mask].tolist()


@MANY
@given(STARTS)
def test_every_generated_token_is_trained_in_exactly_one_segment(drawn: tuple[int, EpisodeStart]) -> None:
    play = Play(drawn[1], drawn[0])
    parts = segments(play.state)
    trained = [i for part in parts for i in generated_ids(part)]
    complete = [i for n in range(play.state.n_turns) for i in unpack_ids(play.calls[f"e1:g{n}"][1])]
    assert sorted(trained) == sorted(complete)
    turns = [turn for part in parts for turn in range(part.first_turn, part.last_turn + 1)]
    assert len(turns) == len(set(turns))
    report = transcript(play.state)
    assert report.n_tokens_generated == len(complete)
    tokenizer = ByteTokenizer(MERGES)
    assert report.generated == [tokenizer.decode(unpack_ids(play.calls[f"e1:g{n}"][1])) for n in range(report.n_turns)]


@MANY
@given(STARTS)
def test_what_the_engine_saw_is_a_prefix_of_a_segment(drawn: tuple[int, EpisodeStart]) -> None:
    play = Play(drawn[1], drawn[0])
    parts = segments(play.state)
    for turn in range(play.state.n_turns):
        prompt, output = play.calls[f"e1:g{turn}"]
        if not output:
            continue
        [part] = [part for part in parts if part.first_turn <= turn <= part.last_turn]
        assert part.columns["ids"].data.startswith(prompt + output)
        mask = part.columns["mask"].data
        begin, end = len(prompt) // 4, (len(prompt) + len(output)) // 4
        assert mask[begin:end] == b"\1" * (end - begin)
        assert end <= play.start.settings.max_context_tokens


@MANY
@given(STARTS)
def test_columns_runs_and_parents_of_segments_are_whole(drawn: tuple[int, EpisodeStart]) -> None:
    play = Play(drawn[1], drawn[0])
    parts = segments(play.state)
    names = [part.id for part in parts]
    assert len(names) == len(set(names))
    for number, part in enumerate(parts):
        size = len(part.columns["mask"].data)
        assert [(c.dtype, c.shape) for c in part.columns.values()] == [("u4", (size,)), ("u1", (size,)), ("f4", (size,))]
        mask = np.frombuffer(part.columns["mask"].data, "u1").astype(bool)
        logprobs = np.frombuffer(part.columns["logprobs"].data, "<f4")
        assert (logprobs[~mask] == 0).all() and (logprobs[mask] < 0).all()
        assert not mask[: part.n_prompt].any() and mask[part.n_prompt]
        covered = np.zeros(size, bool)
        for run in part.versions:
            assert not covered[run.start : run.end].any()
            covered[run.start : run.end] = True
        assert (covered == mask).all()
        origins = np.full(size, "", dtype="U9")
        position = 0
        for origin in part.origins:
            assert origin.start == position < origin.end
            origins[origin.start : origin.end] = origin.origin
            position = origin.end
        assert position == size
        assert (origins[mask] == "generated").all()
        assert part.parent is None if number == 0 else part.parent in names[:number]
        if part.parent is not None:
            parent = parts[names.index(part.parent)].columns["ids"].data
            assert part.columns["ids"].data[:4] == parent[:4]


@MANY
@given(STARTS)
def test_replay_is_deterministic_and_may_be_cut_anywhere(drawn: tuple[int, EpisodeStart]) -> None:
    play = Play(drawn[1], drawn[0])
    agent = make_agent(play.start.settings, ByteTokenizer(MERGES))
    state, requests = agent.begin(play.start)
    assert (state, requests) == (play.states[0], play.emitted[0])
    for fact, after, emitted in zip(play.facts, play.states[1:], play.emitted[1:], strict=True):
        state, requests = agent.apply(state, fact)
        assert (state, requests) == (after, emitted)
        if emitted:
            assert agent.pending(state) == emitted
    step = max(1, len(play.facts) // 5)
    for cut in range(0, len(play.facts) + 1, step):
        state = fold(agent, play.start, play.facts[:cut])
        pending = agent.pending(state)
        assert state == play.states[cut]
        if isinstance(pending[0], GenerateRequest):
            prompt, output = play.calls[pending[0].id]
            assert pending[0].prompt == prompt
            assert output.startswith(pending[0].held)
        for fact, emitted in zip(play.facts[cut:], play.emitted[cut + 1 :], strict=True):
            state, requests = agent.apply(state, fact)
            assert requests == emitted


@MANY
@given(STARTS)
def test_texts_of_tools_are_never_acted_upon(drawn: tuple[int, EpisodeStart]) -> None:
    play = Play(drawn[1], drawn[0])
    assert "evil" not in str(play.finished.answer)
    assert all(use.argument != "evil" for use in play.state.tool_log)
    assert sum(state.finished is not None for state in play.states) == 1
    for state in play.states:
        assert sum(part is not None for part in (state.call, state.tool, state.finished)) == 1
        assert state.n_turns <= play.start.settings.max_turns
    limits = play.start.settings
    if play.finished.status == "exhausted" and limits.forced_tokens and limits.forced_turns:
        last = [out[0] for out in play.emitted if out and isinstance(out[0], GenerateRequest)][-1]
        assert last.kind == "answer"
