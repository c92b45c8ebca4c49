"""What was asked for has a name: one for a request and its resumptions, another one for any other request."""

import msgspec
from agent_scenes import COMPACT, Play, start_of
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.agents.episode import GenerateRequest, request_hash
from asearch.agents.packed import pack_ids
from asearch.agents.registry import make_agent

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=5).map(pack_ids)
REQUESTS = st.builds(
    GenerateRequest,
    id=st.text(max_size=4),
    turn=st.integers(0, 3),
    kind=st.sampled_from(["act", "read", "answer"]),
    prompt=IDS,
    held=IDS,
    stop=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    max_new_tokens=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([0.9, 1.0]),
    top_k=st.sampled_from([-1, 5]),
    seed=st.integers(0, 3),
)


def wanted(asked: GenerateRequest) -> tuple[object, ...]:
    """What a request wants, apart from the tokens it has."""
    budget = asked.max_new_tokens + asked.n_held
    return asked.id, asked.turn, asked.kind, asked.prompt, asked.stop, asked.temperature, asked.top_p, asked.top_k, budget


@settings(max_examples=400)
@given(REQUESTS, REQUESTS, st.sets(st.sampled_from([*GenerateRequest.__struct_fields__])))
def test_two_requests_share_a_hash_exactly_if_they_want_the_same(
    first: GenerateRequest, other: GenerateRequest, changed: set[str]
) -> None:
    second = msgspec.structs.replace(first, **{name: getattr(other, name) for name in changed})
    assert (request_hash(first) == request_hash(second)) == (wanted(first) == wanted(second))


@settings(max_examples=200)
@given(REQUESTS, IDS, st.integers(0, 9))
def test_a_resumption_has_the_hash_of_its_request(asked: GenerateRequest, held: bytes, seed: int) -> None:
    budget = asked.max_new_tokens + asked.n_held
    again = msgspec.structs.replace(asked, held=held, max_new_tokens=budget - len(held) // 4, seed=seed)
    assert request_hash(again) == request_hash(asked)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_every_call_of_an_episode_keeps_its_hash_from_begin_to_end(seed: int) -> None:
    start = start_of(COMPACT, max_turns=8, forced_tokens=40)
    play, agent = Play(start, seed), make_agent(start.settings, Play(start, seed).tokenizer)
    seen: dict[str, set[str]] = {}
    for state in play.states:
        for asked in agent.pending(state):
            if isinstance(asked, GenerateRequest):
                seen.setdefault(asked.id, set()).add(request_hash(asked))
    assert all(len(hashes) == 1 for hashes in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


def test_where_one_field_ends_and_the_next_begins_is_part_of_the_hash() -> None:
    asked = GenerateRequest(
        id="e",
        turn=0,
        kind="act",
        prompt=b"abcd",
        held=b"",
        stop=("a", "b"),
        max_new_tokens=1,
        temperature=1,
        top_p=1,
        top_k=-1,
        seed=0,
    )
    others = [msgspec.structs.replace(asked, stop=stop) for stop in [("ab",), ("a", "b", ""), ("", "a", "b")]]
    assert len({request_hash(each) for each in [asked, *others]}) == 4
    assert request_hash(asked) == request_hash(msgspec.structs.replace(asked, temperature=1.0, top_p=1.0))
