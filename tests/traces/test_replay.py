"""Replay says that an episode is as it was exactly if it is: whoever drove it, wherever a byte has changed."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.cli.replaying.lines import OutcomeLines, Replayer, lines_of
from actors.runtime.episode_lines import encode_episode
from asearch.agents.packed import pack_logprobs
from asearch.agents.registry import make_agent
from asearch.traces.record import EpisodeRecord, record_of
from asearch.traces.replay import ref_of
from asearch.traces.verdicts import Difference
from schemas.archive import BLOBS, ArchivedEpisode
from schemas.codec import encode_result
from schemas.events import (
    AnswerKeyStored,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeGraded,
    EpisodeTaken,
    Event,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
)
from tests.sim.scenario import scenario_of
from tests.sim.simulation import Simulation


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """A run whose processes were killed and stopped, so that episodes were taken over in the middle."""
    return Simulation(tmp_path_factory.mktemp("sim"), scenario_of(0)).run()


@pytest.fixture(scope="module")
def replayer(sim: Simulation) -> Replayer:
    agent = make_agent(sim.scenario.settings.agent, sim.tokenizer)
    keys = {each.key.task: each.key for each in sim.journal.facts["plan"].values() if isinstance(each, AnswerKeyStored)}
    settings = sim.scenario.settings
    return Replayer(folder=sim.folder / "archive", has_ended=True, agent=agent, settings=settings, keys=keys)


@pytest.fixture(scope="module")
def lines(sim: Simulation) -> list[bytes]:
    return [line for _, line in lines_of(sim.folder / "archive" / "episodes.jsonl")]


class Parts(msgspec.Struct):
    outcome: msgspec.Raw
    facts: list[msgspec.Raw]


def spans(line: bytes) -> list[tuple[int, int]]:
    """Where each fact stands, and last the outcome."""
    parts, at, found = msgspec.json.decode(line, type=Parts), line.index(b',"facts":['), list[tuple[int, int]]()
    for fact in parts.facts:
        at = line.index(bytes(fact), at)
        found.append((at, at + len(fact)))
        at += len(fact)
    begin = line.index(bytes(parts.outcome))
    return [*found, (begin, begin + len(parts.outcome))]


def test_every_episode_is_identical_whoever_drove_it(replayer: Replayer, lines: list[bytes], sim: Simulation) -> None:
    verdicts = [replayer.line(number, line) for number, line in enumerate(lines, 1)]
    assert [difference for verdict in verdicts for difference in verdict.differences] == []
    assert all(verdict.graded and not verdict.partial for verdict in verdicts)
    assert sum(line.count(b'"type":"episode_taken"') > 1 for line in lines) > 3
    outcomes = OutcomeLines(sim.folder / "archive", has_ended=True)
    assert outcomes.differences == []
    assert [outcomes.compare(number, line) for number, line in enumerate(lines, 1)] == [[]] * len(lines)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_fact_is_found_and_named(replayer: Replayer, lines: list[bytes], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(lines)))
    line = lines[number - 1]
    places = spans(line)
    fact = data.draw(st.integers(0, len(places) - 1))
    at = data.draw(st.integers(places[fact][0], places[fact][1] - 1))
    changed = bytearray(line)
    changed[at] ^= data.draw(st.integers(1, 255))
    verdict = replayer.line(number, bytes(changed))
    assert not verdict.is_identical
    expected = fact if fact < len(places) - 1 else None
    named = [each for each in verdict.differences if each.fact == expected and each.field == "bytes"]
    whole = [each for each in verdict.differences if each.id == f"episodes.jsonl:{number}"]
    assert named or whole, verdict.differences


def test_bytes_are_named_by_episode_place_type_and_id(replayer: Replayer, lines: list[bytes]) -> None:
    line = next(line for line in lines if b"tool_requested" in line)
    entry = msgspec.json.decode(line, type=ArchivedEpisode)
    place = next(n for n, fact in enumerate(entry.facts) if isinstance(fact, ToolRequested))
    begin, end = spans(line)[place]
    at = line.index(b'"argument":"', begin, end) + len(b'"argument":"')
    verdict = replayer.line(7, line[:at] + b"Z" + line[at + 1 :])
    found = verdict.differences[0]
    assert (found.episode, found.fact, found.type, found.id) == (
        entry.episode,
        place,
        "tool_requested",
        entry.facts[place].id,
    )
    assert "argument" in [each.field for each in verdict.differences]
    torn = replayer.line(7, line[: len(line) // 2])
    assert [(each.episode, each.id) for each in torn.differences] == [(entry.episode, "episodes.jsonl:7")]


def record(lines: list[bytes], *wanted: type[Event]) -> EpisodeRecord:
    """The longest episode that holds facts of these types, as older code archived it: without checksums."""
    entries = [msgspec.json.decode(line, type=ArchivedEpisode) for line in lines]
    holding = [each for each in entries if {*wanted} <= {type(fact) for fact in each.facts}]
    entry = max(holding, key=lambda each: len(each.facts))
    return record_of(entry.episode, list(entry.facts), entry.sequences, entry.outcome)


def with_fact(record: EpisodeRecord, kind: type[Event], change: Callable[[Any], dict[str, Any]]) -> EpisodeRecord:
    """The record with its last fact of a type changed."""
    facts = list(record.facts)
    at = max(n for n, fact in enumerate(facts) if isinstance(fact, kind))
    facts[at] = msgspec.structs.replace(facts[at], **change(facts[at]))
    return replace(record, facts=facts)


def flipped(fact: TokensGenerated, name: str, at: int = 0) -> dict[str, Any]:
    column = fact.columns[name]
    data = bytearray(column.data)
    data[at] ^= 1
    return {"columns": {**fact.columns, name: msgspec.structs.replace(column, data=bytes(data))}}


CHANGES: list[tuple[type[Event], Callable[[Any], dict[str, Any]], str]] = [
    (TokensGenerated, lambda fact: flipped(fact, "ids"), "generated"),
    (TokensGenerated, lambda fact: flipped(fact, "logprobs"), "trajectory"),
    (TokensGenerated, lambda fact: {"request_hash": "0" * 16, "offset": 0}, "request_hash"),
    (TokensGenerated, lambda fact: {"offset": fact.offset + 1}, "offset"),
    (TokensGenerated, lambda fact: {"turn": fact.turn + 1}, "turn"),
    (TokensGenerated, lambda fact: {"request": "other"}, "request"),
    (TokensGenerated, lambda fact: {"id": f"{fact.id}x"}, "id"),
    (TokensGenerated, lambda fact: {"columns": {"ids": fact.columns["ids"]}}, "columns"),
    (
        TokensGenerated,
        lambda fact: {
            "versions": [
                msgspec.structs.replace(run, version=msgspec.structs.replace(run.version, step=run.version.step + 1))
                for run in fact.versions
            ]
        },
        "trajectory",
    ),
    (ToolRequested, lambda fact: {"argument": "other"}, "argument"),
    (ToolRequested, lambda fact: {"tool": "other"}, "tool"),
    (ToolRequested, lambda fact: {"call": "other"}, "call"),
    (ToolRequested, lambda fact: {"seed": fact.seed + 1}, "seed"),
    (ToolRequested, lambda fact: {"member": fact.member + 1}, "member"),
    (ToolReturned, lambda fact: {"call": "other"}, "call"),
    (ToolReturned, lambda fact: {"result": msgspec.structs.replace(fact.result, documents=[])}, "request_hash"),
    (EpisodeFinished, lambda fact: {"status": "other"}, "status"),
    (EpisodeFinished, lambda fact: {"answer": "other"}, "answer"),
    (EpisodeFinished, lambda fact: {"generated": [*fact.generated, ""]}, "generated"),
    (EpisodeFinished, lambda fact: {"tool_log": []}, "tool_log"),
    (EpisodeFinished, lambda fact: {"n_turns": fact.n_turns + 1}, "n_turns"),
    (EpisodeFinished, lambda fact: {"n_tokens_generated": 0}, "n_tokens_generated"),
    (EpisodeFinished, lambda fact: {"oldest": None}, "oldest"),
    (EpisodeFinished, lambda fact: {"trajectory": msgspec.structs.replace(fact.trajectory, size_bytes=1)}, "trajectory"),
    (EpisodeFinished, lambda fact: {"requested_ns": 1}, "requested_ns"),
    (EpisodeTaken, lambda fact: {"request": msgspec.structs.replace(fact.request, seed=fact.request.seed + 1)}, "request.seed"),
]


@pytest.mark.parametrize(("kind", "change", "field"), CHANGES)
def test_what_follows_from_the_facts_is_compared(
    replayer: Replayer, lines: list[bytes], kind: type[Event], change: Callable[[Any], dict[str, Any]], field: str
) -> None:
    whole = record([line for line in lines if line.count(b"episode_taken") > 1], ToolRequested, ToolReturned)
    assert replayer.judge(whole).is_identical
    verdict = replayer.judge(with_fact(whole, kind, change))
    assert field in {each.field for each in verdict.differences}, verdict.differences


def test_an_outcome_is_compared_too(replayer: Replayer, lines: list[bytes]) -> None:
    whole = record(lines, ToolRequested)
    assert isinstance(whole.outcome, EpisodeGraded)
    reward = msgspec.structs.replace(whole.outcome.reward, value=whole.outcome.reward.value + 0.5)
    for changes in ({"reward": reward}, {"correct": not whole.outcome.correct}, {"n_searches": 99}, {"member": 7}):
        verdict = replayer.judge(replace(whole, outcome=msgspec.structs.replace(whole.outcome, **changes)))
        assert [(each.type, each.field) for each in verdict.differences] == [("outcome", *changes)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_episode_that_was_cut_is_identical_as_far_as_it_goes(
    replayer: Replayer, lines: list[bytes], data: st.DataObject
) -> None:
    entry = msgspec.json.decode(data.draw(st.sampled_from(lines)), type=ArchivedEpisode)
    n = data.draw(st.integers(0, len(entry.facts) - 1))
    part = record_of(entry.episode, list(entry.facts[:n]), entry.sequences[:n])
    verdict = replayer.judge(part)
    assert (verdict.differences, verdict.partial) == ([], True)
    assert entry.outcome is not None
    graded = replayer.judge(replace(part, outcome=entry.outcome))
    assert graded.is_identical == (n == 0), "an outcome needs the facts that led to it"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_fact_that_was_left_out_or_repeated_is_found(replayer: Replayer, lines: list[bytes], data: st.DataObject) -> None:
    entry = msgspec.json.decode(data.draw(st.sampled_from(lines)), type=ArchivedEpisode)
    whole = record_of(entry.episode, list(entry.facts), entry.sequences, entry.outcome)
    n = data.draw(st.integers(0, len(whole.facts) - 1))
    without = replace(whole, facts=[*whole.facts[:n], *whole.facts[n + 1 :]], sequences=[], positions=[])
    twice = replace(whole, facts=[*whole.facts[: n + 1], *whole.facts[n:]], sequences=[], positions=[])
    assert not replayer.judge(without).is_identical
    assert not replayer.judge(twice).is_identical


def test_a_changed_payload_is_found_where_it_is_used(replayer: Replayer, lines: list[bytes], tmp_path: Path) -> None:
    entry = msgspec.json.decode(next(line for line in lines if b"tool_returned" in line), type=ArchivedEpisode)
    facts = list(entry.facts)
    place = next(n for n, fact in enumerate(facts) if isinstance(fact, ToolReturned))
    returned = facts[place]
    assert isinstance(returned, ToolReturned)
    assert returned.result is not None
    payload = encode_result(returned.result)
    facts[place] = msgspec.structs.replace(returned, result=None, blob=ref_of(entry.episode, payload))
    line = encode_episode(1, entry.outcome, list(zip(entry.sequences, facts, strict=True)))
    folder = tmp_path / BLOBS
    folder.mkdir()
    (folder / xxhash.xxh3_128_hexdigest(payload)).write_bytes(payload)
    (folder / xxhash.xxh3_128_hexdigest(b"tokens")).write_bytes(b"tokens")
    there = replace(replayer, folder=tmp_path, bad_blobs=set())
    assert there.line(1, line).is_identical
    assert list(there.other_blobs()) == []

    (folder / xxhash.xxh3_128_hexdigest(b"tokens")).write_bytes(b"tokenz")
    changed = bytearray(payload)
    changed[random.Random(0).randrange(len(payload))] ^= 4
    (folder / xxhash.xxh3_128_hexdigest(payload)).write_bytes(changed)
    (found,) = there.line(1, line).differences
    assert (found.fact, found.type, found.id, found.field) == (place, "tool_returned", returned.id, "blob")
    assert [each.id for each in there.other_blobs()] == [xxhash.xxh3_128_hexdigest(b"tokens")]
    (folder / xxhash.xxh3_128_hexdigest(payload)).unlink()
    (gone,) = there.line(1, line).differences
    assert (gone.id, gone.field) == (returned.id, "blob")


def test_any_changed_byte_of_an_outcome_line_is_found(sim: Simulation, lines: list[bytes], tmp_path: Path) -> None:
    data = (sim.folder / "archive" / "outcomes.jsonl").read_bytes()
    chance, path = random.Random(1), tmp_path / "outcomes.jsonl"
    for _ in range(60):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        outcomes = OutcomeLines(tmp_path, has_ended=True)
        found: list[Difference] = list(outcomes.differences)
        for number, line in enumerate(lines, 1):
            found += outcomes.compare(number, line)
        assert found
        assert all(each.id.startswith("outcomes.jsonl") for each in found)


def test_only_the_agent_drops_an_episode_for_a_tool(replayer: Replayer, lines: list[bytes]) -> None:
    whole = record(lines, ToolRequested)
    assert isinstance(whole.outcome, EpisodeGraded)
    fields = {name: getattr(whole.outcome, name) for name in EpisodeDropped.__struct_fields__ if hasattr(whole.outcome, name)}
    dropped = EpisodeDropped(**fields, reason="tool_outage", message="search: retryable: gone")
    assert [each.field for each in replayer.judge(replace(whole, outcome=dropped)).differences] == ["reason"]
    at = max(n for n, fact in enumerate(whole.facts) if isinstance(fact, ToolReturned))
    returned = whole.facts[at]
    assert isinstance(returned, ToolReturned)
    assert returned.result is not None
    failed = msgspec.structs.replace(returned.result, documents=[], error="retryable", message="gone")
    facts = [*whole.facts[:at], msgspec.structs.replace(returned, result=failed)]
    asked = next(fact for fact in whole.facts if isinstance(fact, ToolRequested) and fact.call == returned.call)
    dropped = msgspec.structs.replace(dropped, message=f"{asked.tool}: retryable: gone")
    verdict = replayer.judge(replace(whole, facts=facts, outcome=dropped))
    assert (verdict.differences, verdict.partial) == ([], False)


def test_infinite_logprobs_are_a_difference_not_an_error(replayer: Replayer, lines: list[bytes]) -> None:
    whole = record(lines, ToolRequested)

    def endless(fact: TokensGenerated) -> dict[str, Any]:
        column = fact.columns["logprobs"]
        data = pack_logprobs([float("inf")] * (len(column.data) // 4))
        return {"columns": {**fact.columns, "logprobs": msgspec.structs.replace(column, data=data)}}

    verdict = replayer.judge(with_fact(whole, TokensGenerated, endless))
    assert "columns" in [each.field for each in verdict.differences]
