"""Drivers, engines and the broker die around an episode: who goes on, who is refused, and what is asked for again."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from actors import driver as module
from actors.engine import Engine
from actors.runtime import engines
from actors.runtime.broker import free_port, start_broker
from actors.runtime.bus import Incoming, Stored
from actors.runtime.platform import SystemPlatform
from actors.tool import Tool
from asearch.configuration.settings import Settings
from asearch.models.tokenizer import Tokenizer
from asearch.tools.base import ToolSet
from schemas.commands import Generate, Received, ToolReply
from schemas.events import (
    DeadlineNeared,
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeTaken,
    PolicyPublished,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
)
from schemas.records import Column, Version, WeightManifest
from tests.actors.acting import ActingEngine, answer, prompt_of, search_then_answer, silence
from tests.actors.conftest import Stage
from tests.actors.test_driver import Cast, request, taken
from tests.runtime.facts import call as tool_requested
from tests.runtime.facts import until
from tests.sim.faults import Troubles
from tests.sim.parts import ScriptedServer, ScriptedTool
from tests.sim.scenario import SETTINGS


@pytest.fixture
def cast(stage: Stage, model_dir: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Cast:
    monkeypatch.setattr(engines, "LOST_AFTER_S", 0.8)
    monkeypatch.setattr(module, "LEASE_S", 0.2)
    return Cast(stage, model_dir, tokenizer)


def with_deadline(deadline_s: float) -> Settings:
    return msgspec.structs.replace(SETTINGS, run=msgspec.structs.replace(SETTINGS.run, episode_deadline_s=deadline_s))


# --- drivers ---


async def test_a_driver_that_wakes_up_after_its_successor_is_refused(cast: Cast) -> None:
    """The sleeper's engine is slow; meanwhile another driver takes the episode over and ends it."""
    gate = asyncio.Event()

    async def once_open(engine: ActingEngine, command: Generate) -> None:
        if len(engine.asked) == 1:
            await gate.wait()
        await answer(engine, command)

    engine = await cast.engine(once_open)
    sleeper = await cast.driver()
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    heir = await cast.driver(name="driver-1")
    for attempt in range(1, 8):
        # Each request goes to either of the two; the sleeper believes that it holds the episode, and lets it pass.
        await cast.ask(request(attempt=attempt))
        await asyncio.sleep(0.1)
        if heir.gauges()["n_taken_over"]:
            break
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    gate.set()
    await until(lambda: sleeper.gauges()["n_abandoned"] == 1)
    assert isinstance(finished, EpisodeFinished) and finished.driver == "driver-1"
    kinds = [type(event) for event in await cast.trace()]
    assert kinds == [EpisodeTaken, EpisodeTaken, TokensGenerated, EpisodeFinished]
    assert sleeper.gauges()["n_done"] == 0


async def test_a_driver_that_wakes_up_past_the_deadline_drops_nothing(cast: Cast) -> None:
    engine = await cast.engine(silence)
    sleeper = await cast.driver(with_deadline(1.0))
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    other = await cast.stage.connect("driver")
    stored = await other.read_key("trace", "e1")
    await other.append(taken("driver-9", request(attempt=1)), "e1", expected=stored[-1].sequence)
    await until(lambda: sleeper.gauges()["n_abandoned"] == 1)
    assert await cast.stage.facts("outcomes") == []


async def test_the_wall_clock_of_an_episode_goes_on_in_another_driver(cast: Cast) -> None:
    bus = await cast.stage.connect("driver")
    first = msgspec.structs.replace(taken("driver-9", request()), at_ns=1_000)
    near = DeadlineNeared(id="d", at_ns=1_000 + 3_600 * 10**9, episode="e1", attempt=0, driver="driver-9")
    last = await bus.append(first, "e1", expected=0)
    await bus.append(near, "e1", expected=last)
    await cast.engine(silence)
    await cast.driver(with_deadline(600.0))
    await cast.ask(request(attempt=1))
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDropped)
    assert outcome.reason == "deadline"


async def test_chunks_for_an_earlier_life_of_a_driver_are_not_taken(cast: Cast) -> None:
    """An engine may still stream to a driver that was killed and came back under the same name."""
    gate = asyncio.Event()

    async def late(engine: ActingEngine, command: Generate) -> None:
        if len(engine.asked) == 1:
            await engine.say(command, engine.ids(" so </think> <answer> red </answer>")[:2], finish=None)
            return
        await engine.say(engine.asked[0], engine.ids(" green green"), finish=None)
        await gate.wait()
        await engine.say(command, engine.ids(" so </think> <answer> red </answer>")[2:])

    engine = await cast.engine(late)
    first = await cast.driver()
    await cast.ask(request())
    await cast.stage.wait_for("trace", TokensGenerated)
    await cast.stage.kill(first)
    await cast.driver()
    await cast.ask(request(attempt=1))
    await until(lambda: len(engine.asked) == 2)
    gate.set()
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished)
    assert finished.generated == [" so </think> <answer> red </answer>"]
    assert prompt_of(engine.asked[1]) == prompt_of(engine.asked[0]) + engine.ids(" so </think> <answer> red </answer>")[:2]


async def test_an_episode_that_is_cancelled_before_it_runs_frees_its_place(cast: Cast) -> None:
    held = await cast.driver()
    n_free = held._slots._value
    stored = Stored("plan", "", 1, b"", request())
    await held.handle(request(), stored)
    held._episodes["e1"].cancel()
    await until(lambda: held.gauges()["n_episodes"] == 0)
    assert held._slots._value == n_free
    assert held._held == set()


async def test_an_episode_that_has_ended_is_not_taken_again(cast: Cast) -> None:
    """Its request comes again when an acknowledgement was lost; its facts may be archived and purged by then."""
    engine = await cast.engine(answer)
    held = await cast.driver()
    await held._run_of(request(), 1).die("poison", "test")
    await cast.ask(request(), request("e2"))
    await cast.stage.wait_for("trace", EpisodeFinished)
    assert [command.episode for command in engine.asked] == ["e2"]


async def test_a_request_that_nobody_can_take_ends_its_episode(cast: Cast) -> None:
    held = await cast.driver()
    await held.poisoned(Stored("plan", "", 1, b"", request()))
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDead)
    assert outcome.reason == "poison"


async def test_facts_that_do_not_fit_end_the_episode(cast: Cast) -> None:
    bus = await cast.stage.connect("driver")
    last = await bus.append(taken("driver-9", request()), "e1", expected=0)
    await bus.append(ToolReturned(id="x", episode="e1", call="e1:t7", turn=7, result=None), "e1", expected=last)
    await bus.append(DeadlineNeared(id="y", episode="e1"), "e1", expected=last + 1)
    empty = {name: Column(dtype=kind, shape=(0,), data=b"") for name, kind in (("ids", "u4"), ("logprobs", "f4"))}
    stray = TokensGenerated(id="z", episode="e1", request="e1:g9", turn=9, offset=0, columns=empty, versions=[])
    await bus.append(stray, "e1", expected=last + 2)
    await cast.driver()
    await cast.ask(request(attempt=1))
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDead)
    assert outcome.reason == "poison"


# --- the broker ---


@pytest.fixture
async def own_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A run on a broker that a test may kill."""
    broker = await start_broker(tmp_path / "broker", SystemPlatform(), port=free_port())
    held = Stage(broker, tmp_path)
    await (await held.connect("viewer")).ensure_topology()
    yield held
    await held.close()
    await held.broker.stop()


async def test_a_broker_that_lost_all_of_an_episode_costs_it_nothing(
    own_stage: Stage, model_dir: str, tokenizer: Tokenizer
) -> None:
    """TRACE goes back to before the episode was taken. Its driver waits for a tool, tells all again, and goes on."""
    cast = Cast(own_stage, model_dir, tokenizer)
    engine = await cast.engine(search_then_answer)
    held = await cast.driver()
    folder = next(own_stage.broker.folder.rglob(f"asearch-{own_stage.run}-trace"))
    shutil.copytree(folder, own_stage.folder / "before")
    await cast.ask(request())
    await own_stage.wait_for("trace", ToolRequested)
    before = await cast.trace()
    own_stage.broker.process.kill()
    await own_stage.broker.process.wait()
    shutil.rmtree(folder)
    shutil.copytree(own_stage.folder / "before", folder)
    own_stage.broker = await start_broker(own_stage.broker.folder, SystemPlatform(), port=own_stage.broker.port)
    await until(lambda: held.gauges()["n_reconciled"] == 1, 20.0)
    assert await cast.trace() == before
    await cast.tool()
    (finished,) = await own_stage.wait_for("trace", EpisodeFinished, timeout_s=30.0)
    assert isinstance(finished, EpisodeFinished)
    assert (finished.answer, finished.n_turns, finished.attempt) == ("red", 2, 0)
    assert len(engine.asked) == 2, "no generation was asked for again"
    assert [type(event) for event in await cast.trace()][:4] == [EpisodeTaken, TokensGenerated, ToolRequested, ToolReturned]


async def test_a_chunk_that_an_outage_swallowed_is_asked_for_soon(
    own_stage: Stage, model_dir: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine lives and has said everything; nothing more would ever come."""
    monkeypatch.setattr(module, "RECONNECT_SILENCE_S", 1.0)
    cast = Cast(own_stage, model_dir, tokenizer)

    async def swallowed(engine: ActingEngine, command: Generate) -> None:
        if len(engine.asked) > 1:
            await answer(engine, command)

    engine = await cast.engine(swallowed)
    await cast.driver()
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    await own_stage.broker.stop()
    own_stage.broker = await start_broker(own_stage.broker.folder, SystemPlatform(), port=own_stage.broker.port)
    await own_stage.wait_for("trace", EpisodeFinished, timeout_s=20.0)
    (tokens,) = [event for event in await cast.trace() if isinstance(event, TokensGenerated)]
    assert tokens.n_asked == 2


# --- tools ---


async def test_a_result_waits_for_a_driver_that_is_connecting_again(stage: Stage) -> None:
    tools = ToolSet(ScriptedTool("search", Troubles(0)), ScriptedTool("access", Troubles(0)))
    await stage.start(Tool(await stage.context("tool-0"), "", tools))
    bus = await stage.connect("driver")
    heard: list[ToolReply] = []
    asked = msgspec.structs.replace(tool_requested("e1", 0), reply_to=bus.core_subject(ToolReply, "driver-0"))
    await bus.append(asked, "e1", expected=0)
    await asyncio.sleep(0.6)

    async def on_reply(incoming: Incoming) -> None:
        assert isinstance(incoming.message, ToolReply)
        heard.append(incoming.message)
        await incoming.reply(Received())

    await bus.subscribe(ToolReply, "driver-0", on_reply)
    await until(lambda: len(heard) == 1)
    assert heard[0].call == asked.call


# --- engines ---


class Serving:
    """An engine whose server says nothing for a long time."""

    def __init__(self, stage: Stage, tokenizer: Tokenizer) -> None:
        self.stage, self.tokenizer = stage, tokenizer

    async def start(self) -> Engine:
        (self.stage.folder / "weights.bin").touch()
        version = Version(lineage=1, step=0)
        manifest = WeightManifest(path=str(self.stage.folder), shards=[])
        published = PolicyPublished(id="p", model="policy", version=version, parent=None, manifest=manifest)
        await (await self.stage.connect("trainer")).append(published, "policy")
        server = ScriptedServer(self.tokenizer, Troubles(0, {"engine_hang": 1000}))
        engine = Engine(await self.stage.context("engine-0"), "", server=server)
        await self.stage.start(engine)
        return engine


async def test_a_generation_ends_when_its_driver_names_the_episode_no_more(
    cast: Cast, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.engine.LAPSE_S", 2.5)
    engine = await Serving(cast.stage, tokenizer).start()
    alive, dead = await cast.driver(), await cast.driver(name="driver-1")
    await cast.ask(*(request(f"e{n}") for n in range(8)))
    await until(lambda: len(engine._running) == 8)
    mine = {serving.command.episode for serving in engine._running.values() if serving.command.driver == "driver-1"}
    assert 0 < len(mine) < 8
    await cast.stage.kill(dead)
    await until(lambda: len(engine._running) == 8 - len(mine), 10.0)
    assert engine.gauges()["n_lapsed"] == len(mine)
    assert {serving.command.driver for serving in engine._running.values()} == {"driver-0"}
    assert alive.gauges()["n_episodes"] == 8 - len(mine)


async def test_an_outage_ends_no_generation(
    own_stage: Stage, tokenizer: Tokenizer, model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the broker is away nobody is heard, and nobody is judged by that."""
    monkeypatch.setattr("actors.engine.LAPSE_S", 3.0)
    monkeypatch.setattr(module, "LEASE_S", 0.2)
    monkeypatch.setattr(module, "RECONNECT_SILENCE_S", 60.0)
    engine = await Serving(own_stage, tokenizer).start()
    cast = Cast(own_stage, model_dir, tokenizer)
    await cast.driver()
    await cast.ask(request())
    await until(lambda: len(engine._running) == 1)
    await own_stage.broker.stop()
    await asyncio.sleep(3.2)
    own_stage.broker = await start_broker(own_stage.broker.folder, SystemPlatform(), port=own_stage.broker.port)
    beats = engine._clock.now_s
    await until(lambda: engine._clock.now_s > beats + 1.0)
    assert engine.gauges()["n_lapsed"] == 0
    assert len(engine._running) == 1
