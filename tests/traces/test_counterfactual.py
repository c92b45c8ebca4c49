"""An episode gone on with: the same tokens give the same episode, from whichever turn; others give another."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.agents.episode import Agent, EpisodeState, GenerateRequest, ToolCall
from asearch.agents.packed import unpack_ids, unpack_logprobs
from asearch.agents.recorded import start_of
from asearch.agents.registry import make_agent
from asearch.engines.client import GeneratedChunk, VersionSpan
from asearch.errors import EngineError, InputError
from asearch.traces.counterfactual import folded, go_on, turns_of
from asearch.traces.record import EpisodeRecord, record_of
from schemas.archive import ArchivedEpisode
from schemas.events import ToolReturned
from schemas.records import ToolResult
from tests.sim.simulation import Simulation
from tests.traces.test_replay import lines as lines  # a fixture
from tests.traces.test_replay import sim as sim  # a fixture


class Echo:
    """An engine that says what was said before, and tools that return what was returned."""

    def __init__(self, whole: EpisodeState, record: EpisodeRecord, *, aborts: int = 0) -> None:
        self._own = {piece.turn: piece for piece in whole.pieces if piece.own}
        self._results = {fact.call: record.result_of(fact) for fact in record.facts if isinstance(fact, ToolReturned)}
        self._aborts = aborts

    async def generate(self, asked: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        piece = self._own[asked.turn]
        ids, logprobs = unpack_ids(piece.ids)[asked.n_held :], unpack_logprobs(piece.logprobs).tolist()[asked.n_held :]
        if self._aborts:
            self._aborts -= 1
            yield self._chunk(0, [], [], "abort")
            return
        cut = len(ids) // 2
        yield self._chunk(0, ids[:cut], logprobs[:cut], None)
        yield self._chunk(cut, ids[cut:], logprobs[cut:], "stop")

    def _chunk(self, at: int, ids: list[int], logprobs: list[float], finish: str | None) -> GeneratedChunk:
        spans = [VersionSpan("3.4", at, at + len(ids))] if ids else []
        return GeneratedChunk(at, ids, logprobs, spans, finish, None, 0, 0)

    async def call(self, asked: ToolCall) -> ToolResult:
        result = self._results[asked.id]
        assert result is not None
        return result


def record_from(line: bytes) -> EpisodeRecord:
    entry = msgspec.json.decode(line, type=ArchivedEpisode)
    return record_of(entry.episode, list(entry.facts), entry.sequences, entry.outcome)


def told(sim: Simulation, record: EpisodeRecord) -> tuple[Agent, EpisodeState]:
    agent = make_agent(sim.scenario.settings.agent, sim.tokenizer)
    assert record.request is not None
    return agent, folded(agent, start_of(record.request, sim.scenario.settings.agent), record)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_same_tokens_give_the_same_episode_from_any_turn(sim: Simulation, lines: list[bytes], data: st.DataObject) -> None:
    record = record_from(data.draw(st.sampled_from(lines)))
    agent, whole = told(sim, record)
    turn = data.draw(st.integers(0, whole.n_turns - 1))
    state = folded(agent, whole.start, record, turn)
    assert (state.n_turns, state.finished) == (turn, None)
    echo = Echo(whole, record, aborts=data.draw(st.integers(0, 2)))
    ended = asyncio.run(go_on(agent, state, echo, echo))
    assert (ended.finished, ended.generated, ended.tool_log) == (whole.finished, whole.generated, whole.tool_log)
    went = turns_of(ended, turn)
    assert [each.text for each in went] == list(whole.generated[turn:])
    assert all(each.versions == ["3.4"] for each in went if each.n_tokens)


def test_a_turn_that_the_episode_has_not_is_refused(sim: Simulation, lines: list[bytes]) -> None:
    record = record_from(lines[0])
    agent, whole = told(sim, record)
    with pytest.raises(InputError, match="none is number 99"):
        folded(agent, whole.start, record, 99)


def test_an_engine_that_only_breaks_off_ends_it(sim: Simulation, lines: list[bytes]) -> None:
    record = record_from(lines[0])
    agent, whole = told(sim, record)
    echo = Echo(whole, record, aborts=100)
    with pytest.raises(EngineError, match="5 times in a row"):
        asyncio.run(go_on(agent, folded(agent, whole.start, record, 0), echo, echo))
