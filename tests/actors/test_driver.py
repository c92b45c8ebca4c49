"""The driver: one writer of an episode, and every way in which an episode ends or goes on."""

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from actors import driver as module
from actors.driver import Driver
from actors.runtime import engines
from actors.runtime.bus import Stored
from actors.runtime.episode_run import MAX_IDLE_TAKES
from actors.tool import Tool
from asearch.agents.packed import unpack_ids
from asearch.configuration.settings import Settings
from asearch.models.tokenizer import Tokenizer
from asearch.tools.base import ToolSet
from schemas.commands import CancelEpisodes, Generate
from schemas.events import (
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeRequested,
    EpisodeTaken,
    Event,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
)
from schemas.records import BlobRef, Task
from tests.actors.acting import ActingEngine, Script, answer, prompt_of, search_then_answer, silence
from tests.actors.conftest import Stage
from tests.runtime.facts import until
from tests.sim.faults import Troubles
from tests.sim.parts import ScriptedTool
from tests.sim.scenario import SETTINGS


def request(episode: str = "e1", attempt: int = 0) -> EpisodeRequested:
    return EpisodeRequested(
        id=f"request-{episode}-{attempt}",
        at_ns=1_700_000_000_000_000_000 + attempt,
        episode=episode,
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task=Task(id="task", question="Which colour is it?"),
        seed=1,
        progress=0,
        recipe_hash="h",
        attempt=attempt,
    )


def taken(driver: str, asked: EpisodeRequested) -> EpisodeTaken:
    return EpisodeTaken(
        id=f"{asked.episode}-taken-{asked.attempt}", episode=asked.episode, driver=driver, attempt=asked.attempt, request=asked
    )


class Cast:
    """A driver and its engines."""

    def __init__(self, stage: Stage, model_dir: str, tokenizer: Tokenizer) -> None:
        self.stage, self.model_dir, self._tokenizer = stage, model_dir, tokenizer

    async def engine(self, script: Script, name: str = "engine-0") -> ActingEngine:
        return await ActingEngine(await self.stage.connect("engine"), name, self._tokenizer, script).start()

    async def driver(self, settings: Settings = SETTINGS, name: str = "driver-0") -> Driver:
        held = Driver(await self.stage.context(name, settings), self.model_dir)
        await self.stage.start(held)
        return held

    async def tool(self, outage: bool = False) -> None:
        troubles = Troubles(0, {"tool_outage": 1000} if outage else {})
        tools = ToolSet(ScriptedTool("search", troubles), ScriptedTool("access", troubles))
        await self.stage.start(Tool(await self.stage.context("tool-0"), "", tools))

    async def ask(self, *asked: EpisodeRequested) -> None:
        bus = await self.stage.connect("scheduler")
        for event in asked:
            await bus.append(event, event.episode)

    async def trace(self, episode: str = "e1") -> list[Event]:
        return [stored.event for stored in await self.stage.buses[0].read_key("trace", episode) if stored.event is not None]


@pytest.fixture
def cast(stage: Stage, model_dir: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Cast:
    monkeypatch.setattr(engines, "LOST_AFTER_S", 0.8)
    monkeypatch.setattr(module, "LEASE_S", 0.2)
    return Cast(stage, model_dir, tokenizer)


async def test_an_episode_with_a_search_is_recorded_and_finished(cast: Cast) -> None:
    await cast.engine(search_then_answer)
    await cast.tool()
    with capture_logs() as lines:
        held = await cast.driver()
        await cast.ask(request())
        (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
        await until(lambda: held.gauges()["n_done"] == 1)
    assert isinstance(finished, EpisodeFinished)
    assert (finished.status, finished.answer, finished.n_turns) == ("answered", "red", 2)
    assert [type(event) for event in await cast.trace()] == [
        EpisodeTaken,
        TokensGenerated,
        ToolRequested,
        ToolReturned,
        TokensGenerated,
        EpisodeFinished,
    ]
    (line,) = [line for line in lines if line.get("episode") == "e1"]
    assert (line["event"], line["event_id"], line["turns"]) == ("episode finished", finished.id, 2)
    assert (line["tokens"], line["elapsed_s"]) == (finished.n_tokens_generated, round(finished.elapsed_ns / 1e9, 3))


async def test_a_driver_that_is_refused_abandons_the_episode(cast: Cast) -> None:
    gate = asyncio.Event()

    async def slow(engine: ActingEngine, command: Generate) -> None:
        await gate.wait()
        await answer(engine, command)

    engine = await cast.engine(slow)
    held = await cast.driver()
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    other = await cast.stage.connect("driver")
    stored = await other.read_key("trace", "e1")
    await other.append(taken("driver-9", request(attempt=1)), "e1", expected=stored[-1].sequence)
    gate.set()
    await until(lambda: held.gauges()["n_abandoned"] == 1)
    assert [type(event) for event in await cast.trace()] == [EpisodeTaken, EpisodeTaken]
    assert await cast.stage.facts("outcomes") == []


async def test_a_deadline_becomes_an_outcome(cast: Cast) -> None:
    engine = await cast.engine(silence)
    settings = msgspec.structs.replace(SETTINGS, run=msgspec.structs.replace(SETTINGS.run, episode_deadline_s=0.5))
    await cast.driver(settings)
    await cast.ask(request())
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDropped)
    assert outcome.reason == "deadline"
    await until(lambda: len(engine.aborted) == 1)


async def test_a_tool_outage_drops_the_episode(cast: Cast) -> None:
    await cast.engine(search_then_answer)
    await cast.tool(outage=True)
    await cast.driver()
    await cast.ask(request())
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDropped)
    assert outcome.reason == "tool_outage"
    assert "out of order" in outcome.message


async def test_a_silent_engine_is_replaced_and_its_tokens_are_kept(cast: Cast) -> None:
    others: list[ActingEngine] = []

    async def three_tokens(engine: ActingEngine, command: Generate) -> None:
        others.append(await cast.engine(rest, "engine-1"))
        await engine.say(command, engine.ids(" so </think> <answer> red </answer>")[:3], finish=None)
        engine.stop_beating()

    async def rest(engine: ActingEngine, command: Generate) -> None:
        await engine.say(command, engine.ids(" so </think> <answer> red </answer>")[3:])

    first = await cast.engine(three_tokens, "engine-0")
    await cast.driver()
    await cast.ask(request())
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished)
    assert finished.answer == "red"
    (asked,), (again,) = first.asked, others[0].asked
    assert prompt_of(again) == prompt_of(asked) + first.ids(" so </think> <answer> red </answer>")[:3]
    assert again.max_new_tokens == asked.max_new_tokens - 3
    tokens = [event for event in await cast.trace() if isinstance(event, TokensGenerated)]
    assert [event.offset for event in tokens] == [0, 3]
    assert [len(event.request_hash) for event in tokens] == [16, 0], "what was asked for is said once a generation"
    assert finished.requested_ns == request().at_ns


async def test_tokens_that_get_lost_are_asked_for_again_and_never_recorded(cast: Cast) -> None:
    async def with_a_gap(engine: ActingEngine, command: Generate) -> None:
        ids = engine.ids(" so </think> <answer> red </answer>")
        if len(engine.asked) > 1:
            await engine.say(command, ids[2:])
            return
        await engine.say(command, ids[:2], finish=None)
        await engine.say(command, ids[4:], offset=4)

    engine = await cast.engine(with_a_gap)
    await cast.driver()
    await cast.ask(request())
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished)
    assert finished.answer == "red"
    tokens = [event for event in await cast.trace() if isinstance(event, TokensGenerated)]
    assert [event.offset for event in tokens] == [0, 2]
    assert unpack_ids(tokens[0].columns["ids"].data) == engine.ids(" so </think> <answer> red </answer>")[:2]


async def test_a_driver_that_takes_over_goes_on_from_the_trace(cast: Cast) -> None:
    engine = await cast.engine(search_then_answer)
    first = await cast.driver()
    await cast.ask(request())
    await cast.stage.wait_for("trace", ToolRequested)
    await cast.stage.kill(first)
    second = await cast.driver(name="driver-1")
    await cast.tool()
    await cast.ask(request(attempt=1))
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished)
    assert (finished.answer, finished.n_turns) == ("red", 2)
    assert len(engine.asked) == 2, "the generation before the search was not asked for again"
    asked = [event for event in await cast.trace() if isinstance(event, ToolRequested)]
    assert len({event.call for event in asked}) == 1
    await until(lambda: second.gauges()["n_done"] == 1)


async def test_of_two_drivers_that_take_over_one_is_refused(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = await cast.stage.connect("driver")
    last = await bus.append(taken("driver-7", request()), "e1", expected=0)
    seen = await bus.read_key("trace", "e1")
    await bus.append(taken("driver-8", request(attempt=1)), "e1", expected=last)
    engine = await cast.engine(answer)
    held = Driver(await cast.stage.context("driver-0"), cast.model_dir)

    async def before_the_other(*_: str) -> list[Stored]:
        return seen

    monkeypatch.setattr(held.bus, "read_key", before_the_other)
    await cast.stage.start(held)
    await cast.ask(request(attempt=2), request("e2"))
    await cast.stage.wait_for("trace", EpisodeFinished)
    assert [event.driver for event in await cast.trace() if isinstance(event, EpisodeTaken)] == ["driver-7", "driver-8"]
    assert [command.episode for command in engine.asked] == ["e2"]


async def test_an_episode_that_nobody_can_go_on_with_is_dead(cast: Cast) -> None:
    bus, last = await cast.stage.connect("driver"), 0
    for attempt in range(MAX_IDLE_TAKES):
        last = await bus.append(taken("driver-9", request(attempt=attempt)), "e1", expected=last)
    await cast.engine(answer)
    await cast.driver()
    await cast.ask(request(attempt=MAX_IDLE_TAKES))
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDead)
    assert outcome.reason == "no_progress"


async def test_a_missing_blob_is_the_episodes_death(cast: Cast) -> None:
    bus = await cast.stage.connect("driver")
    last = await bus.append(taken("driver-9", request()), "e1", expected=0)
    blob = BlobRef(episode="e1", hash="0" * 32, size_bytes=5, n_chunks=1)
    await bus.append(ToolReturned(id="x", episode="e1", call="e1:t0", turn=0, blob=blob), "e1", expected=last)
    held = await cast.driver()
    await cast.ask(request(attempt=1))
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDead)
    assert outcome.reason == "blob_missing"
    assert held.gauges()["n_episodes"] == 0


async def test_cancelled_episodes_are_let_go(cast: Cast) -> None:
    engine = await cast.engine(silence)
    held = await cast.driver()
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    scheduler = await cast.stage.connect("scheduler")
    await scheduler.publish(CancelEpisodes(episodes=["e1", "unknown"]), key="all")
    await until(lambda: held.gauges()["n_episodes"] == 0)
    assert await cast.stage.facts("outcomes") == []
