"""The table is consistent with itself and with the events."""

import re
import subprocess
import sys
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schema_samples import EVENTS, MESSAGES

from schemas import commands, events, topology
from schemas.topology import TOPOLOGY, is_key, key_token

STREAMS = {stream.name: stream for stream in TOPOLOGY.streams}
TOKEN = re.compile(r"[a-z]+\Z")
keys = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


def test_every_event_has_exactly_one_row() -> None:
    assert sorted(fact.event.__name__ for fact in TOPOLOGY.facts) == sorted(event.__name__ for event in EVENTS)


def test_every_message_has_one_row_or_is_a_reply() -> None:
    replies = {row.reply for row in TOPOLOGY.core if row.reply is not None}
    sent = [row.message for row in TOPOLOGY.core]
    assert len(set(sent)) == len(sent)
    assert set(sent) | replies == set(MESSAGES)
    assert not set(sent) & replies


def test_tags_and_class_names_agree_and_are_unique() -> None:
    tags = [str(struct.__struct_config__.tag) for struct in (*EVENTS, *MESSAGES)]
    assert len(set(tags)) == len(tags)
    for struct in (*EVENTS, *MESSAGES):
        assert struct.__struct_config__.tag == re.sub(r"(?<!^)(?=[A-Z])", "_", struct.__name__).lower()
        assert struct.__struct_config__.frozen


def test_subjects_are_distinct_and_well_formed() -> None:
    subjects = [(fact.stream, fact.noun, fact.verb) for fact in TOPOLOGY.facts]
    subjects += [("core", row.noun, row.verb) for row in TOPOLOGY.core]
    assert len(set(subjects)) == len(subjects)
    assert all(TOKEN.match(token) for subject in subjects for token in subject)


def test_streams_and_keys_fit() -> None:
    assert len(STREAMS) == len(TOPOLOGY.streams)
    assert "core" not in STREAMS
    for fact in TOPOLOGY.facts:
        assert len(fact.keyed_by) == STREAMS[fact.stream].key, fact.event.__name__
    for stream in TOPOLOGY.streams:
        assert any(fact.stream == stream.name for fact in TOPOLOGY.facts)
        assert stream.max_bytes > 0 and stream.holds


def test_every_actor_named_is_in_the_table() -> None:
    named = {actor for fact in TOPOLOGY.facts for actor in fact.writers}
    named |= {actor for row in TOPOLOGY.core for actor in (*row.senders, *row.receivers)}
    named |= {row.actor for row in (*TOPOLOGY.consumers, *TOPOLOGY.readers)}
    named |= {actor for stream in TOPOLOGY.streams for actor in stream.purged_by}
    assert named == {*TOPOLOGY.actors, "operator", "supervisor"}
    assert all(fact.writers for fact in TOPOLOGY.facts)
    assert all(row.senders and row.receivers for row in TOPOLOGY.core)


def test_queues_and_readers_take_what_is_in_their_stream() -> None:
    assert len({row.name for row in TOPOLOGY.consumers}) == len(TOPOLOGY.consumers)
    for row in TOPOLOGY.consumers:
        assert row.events and all(topology.fact_of(event).stream == row.stream for event in row.events)
        assert row.ack_wait_s > 0 and row.max_ack_pending > 0
    for row in TOPOLOGY.readers:
        assert all(topology.fact_of(event).stream == row.stream for event in row.only)
    assert len({(row.actor, row.stream) for row in TOPOLOGY.readers}) == len(TOPOLOGY.readers)


def test_design_rules_of_writers() -> None:
    for fact in TOPOLOGY.facts:
        if fact.stream in ("plan", "trace", "policy"):
            owner = {"plan": "scheduler", "policy": "trainer"}.get(fact.stream, "driver")
            assert fact.writers == (owner,)
        if fact.stream == "blobs":
            assert fact.writers == ("driver", "trainer")
        assert "viewer" not in fact.writers
        assert (fact.stream == "outcomes") == issubclass(fact.event, events.Outcome)


def test_unions_agree_with_streams() -> None:
    def members(union: object) -> set[type]:
        return set(union.__args__)  # type: ignore[attr-defined]

    def held(stream: str) -> set[type]:
        return {fact.event for fact in TOPOLOGY.facts if fact.stream == stream}

    assert members(events.AnyOutcome) == held("outcomes")
    assert members(events.TraceFact) == held("trace")
    assert members(events.PolicyFact) == held("policy")
    assert members(commands.AnyMessage) == set(MESSAGES)


anything = st.text(st.characters(exclude_categories=()))


@given(anything)
def test_key_token_is_a_key_and_keeps_keys(text: str) -> None:
    token = key_token(text)
    assert is_key(token) and len(token) <= 64
    assert key_token(token) == token
    assert token == text or not is_key(text) or len(text) > 64


@given(st.lists(anything, min_size=2, max_size=8, unique=True))
def test_different_texts_have_different_key_tokens(texts: list[str]) -> None:
    assert all(key_token(a) != key_token(b) for a, b in combinations(texts, 2))


@pytest.mark.parametrize("text", ["", " ", "a.b", "*", ">", "a b", "é", "a\n", "\n", "a\x00", "١", "\ud800"])
def test_what_is_no_key_is_refused(text: str) -> None:
    assert not is_key(text)
    with pytest.raises(ValueError, match="cannot be part of a subject"):
        topology.subject("r", events.EpisodeTaken, text)


@given(keys, st.sampled_from(TOPOLOGY.facts), st.data())
def test_subjects_follow_the_grammar(run: str, fact: topology.Fact, data: st.DataObject) -> None:
    key = [data.draw(keys) for _ in fact.keyed_by]
    tokens = topology.subject(run, fact.event, *key).split(".")
    assert tokens == ["asearch", run, fact.stream, fact.noun, fact.verb, *key]
    assert topology.any_key(run, fact.event) == ".".join([*tokens[:5], ">"])
    assert topology.any_fact(run, fact.stream, *key).split(".") == ["asearch", run, fact.stream, "*", "*", *key]
    assert is_key(topology.broker_stream(run, fact.stream))


def test_schemas_import_nothing_heavy() -> None:
    names = ("codec", "commands", "documents", "events", "framing", "local", "permissions", "records", "topology")
    imports = ", ".join(f"schemas.{name}" for name in names)
    code = f"import sys, {imports}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    outside = set(done.stdout.split()) - set(sys.stdlib_module_names) - set(sys.builtin_module_names)
    before = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    outside -= {name.split(".")[0] for name in before.stdout.split()}
    assert {"schemas", "msgspec"} <= outside <= {"schemas", "msgspec", "typing_extensions"}


def test_the_package_itself_imports_no_third_party_module() -> None:
    code = "import sys; before = set(sys.modules); import schemas; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["schemas"]
