"""An engine that leaves hands its generations over with every token so far; one that is too busy hands over what waits."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from actors import driver as driver_module
from actors import engine as engine_module
from actors.engine import Engine
from actors.runtime import engines
from asearch.engines.client import GeneratedChunk, VersionSpan
from asearch.models.tokenizer import Tokenizer
from schemas.commands import Abort, Heartbeat
from schemas.events import EpisodeFinished, PolicyPublished, TokensGenerated
from schemas.records import Version, WeightManifest
from tests.actors.acting import answer, prompt_of, silence
from tests.actors.conftest import Stage
from tests.actors.test_driver import Cast, request
from tests.actors.test_driver import cast as cast  # a fixture
from tests.runtime.facts import until
from tests.sim.scenario import SETTINGS

TEXT = " so </think> <answer> red </answer>"


class HalfwayServer:
    """Writes the first tokens of an answer and stands still, until it is told to end the request."""

    def __init__(self, tokenizer: Tokenizer, n_streamed: int, n_more: int) -> None:
        self._ids = tokenizer.encode(TEXT)
        self.n_streamed, self.n_more = n_streamed, n_more
        self.version = ""
        self._aborted = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.n_served = self.n_aborts = 0

    async def pause(self, mode: str = "retract") -> None: ...

    async def resume(self) -> None: ...

    async def update_weights(self, path: str, version: str) -> None:
        self.version = version

    async def abort(self, rid: str) -> None:
        self.n_aborts += 1
        await self.answers.wait()
        self._aborted.set()

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], *, rid: str, timeout_s: float
    ) -> AsyncGenerator[GeneratedChunk]:
        self.n_served += 1
        if self.n_streamed:
            yield self._chunk(0, self.n_streamed, None)
        await self._aborted.wait()
        yield self._chunk(self.n_streamed, self.n_streamed + self.n_more, "abort")

    def _chunk(self, start: int, end: int, finish: str | None) -> GeneratedChunk:
        spans = [VersionSpan(self.version, start, end)] if end > start else []
        return GeneratedChunk(start, self._ids[start:end], [-0.25] * (end - start), spans, finish, None, 1, 0)


@pytest.fixture(autouse=True)
def patient(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real engines beat once a second; the cast's are lost after less."""
    monkeypatch.setattr(engines, "LOST_AFTER_S", 2.5)


async def publish(stage: Stage) -> None:
    folder = stage.folder / "weights"
    folder.mkdir()
    event = PolicyPublished(
        id="p",
        model="policy",
        parent=None,
        version=Version(lineage=1, step=0),
        manifest=WeightManifest(path=str(folder), shards=[]),
    )
    await (await stage.connect("trainer")).append(event, "policy")


async def real_engine(cast: Cast, server: HalfwayServer, name: str = "engine-0") -> Engine:
    held = Engine(await cast.stage.context(name), cast.model_dir, server=server)
    await cast.stage.start(held)
    return held


@pytest.mark.parametrize(("n_streamed", "n_more"), [(2, 3), (2, 0), (0, 2), (0, 0)])
async def test_an_engine_that_leaves_loses_no_token(cast: Cast, tokenizer: Tokenizer, n_streamed: int, n_more: int) -> None:
    await publish(cast.stage)
    server = HalfwayServer(tokenizer, n_streamed, n_more)
    leaving = await real_engine(cast, server)
    driver = await cast.driver()
    await cast.ask(request())
    await until(lambda: server.n_served == 1)

    async def rest(engine: Any, command: Any) -> None:
        await engine.say(command, engine.ids(TEXT)[n_streamed + n_more :])

    heir = await cast.engine(rest, "engine-1")
    beats: list[Heartbeat] = []

    async def on_beat(incoming: Any) -> None:
        beats.append(incoming.message)

    await (await cast.stage.connect("viewer")).subscribe(Heartbeat, "engine-0", on_beat)
    await until(lambda: bool(beats))
    await cast.stage.end(leaving)
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished) and finished.generated == [TEXT]
    (asked,) = heir.asked
    assert prompt_of(asked)[-(n_streamed + n_more) :] == tokenizer.encode(TEXT)[: n_streamed + n_more] or not n_streamed + n_more
    tokens = [fact for fact in await cast.trace() if isinstance(fact, TokensGenerated)]
    assert [fact.engine for fact in tokens if fact.versions] == ["engine-0"] * bool(n_streamed) + ["engine-0"] * bool(n_more) + [
        "engine-1"
    ]
    assert driver.gauges()["n_handed_over"] == 1
    assert driver.gauges()["n_tokens"] == len(tokenizer.encode(TEXT)) == finished.n_tokens_generated
    last = [beat for beat in beats if beat.state == "draining"]
    assert last and last[0].leaves_by_ns > last[0].at_ns


async def test_a_server_that_answers_slowly_keeps_no_other_command_waiting(cast: Cast, tokenizer: Tokenizer) -> None:
    await publish(cast.stage)
    server = HalfwayServer(tokenizer, 2, 3)
    server.answers.clear()
    engine = await real_engine(cast, server)
    await cast.driver()
    for name in ("e0", "e1"):
        await cast.ask(request(name))
    await until(lambda: server.n_served == 2)
    first, second = engine._running
    client = await cast.stage.connect("client")
    for command in (Abort(request=first, hand_over=True), Abort(request=first, hand_over=True), Abort(request=second)):
        await client.publish(command, key="engine-0")
    await until(lambda: list(engine._running) == [first])
    assert server.n_aborts == 1
    server.answers.set()
    await until(lambda: engine.gauges()["n_handed_over"] >= 1)


async def test_what_waits_for_weights_is_handed_over_too(cast: Cast, tokenizer: Tokenizer) -> None:
    await publish(cast.stage)
    server = HalfwayServer(tokenizer, 2, 0)
    leaving = await real_engine(cast, server)
    await cast.driver()
    await cast.ask(msgspec.structs.replace(request(), progress=7, purpose="eval"))
    await until(lambda: leaving.gauges()["n_running"] == 1)
    heir = await cast.engine(answer, "engine-1")
    await cast.stage.end(leaving)
    await cast.stage.wait_for("trace", EpisodeFinished)
    assert len(heir.asked) == 1 and server.n_served == 0


async def test_a_stale_engine_serves_training_under_its_own_version(
    cast: Cast, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "STALE_WAIT_S", 0.1)
    await publish(cast.stage)
    server = HalfwayServer(tokenizer, len(tokenizer.encode(TEXT)), 0)
    stale = await real_engine(cast, server)
    await cast.driver()
    await cast.ask(msgspec.structs.replace(request(), progress=3))
    (tokens,) = await cast.stage.wait_for("trace", TokensGenerated)
    assert isinstance(tokens, TokensGenerated)
    assert [str(span.version) for span in tokens.versions] == ["1.0"]
    assert stale.gauges()["n_stale"] == 1


async def test_a_new_life_of_an_engine_is_not_waited_for(cast: Cast) -> None:
    """An engine that was killed and is back at once knows nothing of what it was asked."""
    engine = await cast.engine(silence)
    await cast.driver()
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    engine.pid = 2
    await until(lambda: len(engine.asked) == 2, 5.0)


async def test_what_is_above_the_cap_waits_in_the_driver_and_goes_on_in_order(cast: Cast) -> None:
    engine_settings = msgspec.structs.replace(SETTINGS.engine, max_running_requests=2, max_pending=1)
    gate = asyncio.Event()

    async def once_open(engine: Any, command: Any) -> None:
        await gate.wait()
        await answer(engine, command)

    engine = await cast.engine(once_open)
    driver = await cast.driver(msgspec.structs.replace(SETTINGS, engine=engine_settings))
    names = [f"e{n}" for n in range(6)]
    for name in names:
        await cast.ask(request(name))
        await until(lambda name=name: name in driver._runs)
    await until(lambda: driver.gauges()["n_waiting"] == 3)
    await asyncio.sleep(0.2)
    assert len(engine.asked) == 3
    gate.set()
    await cast.stage.wait_for("trace", EpisodeFinished, n=6)
    assert [command.episode for command in engine.asked] == names


async def test_episodes_wait_while_the_only_engine_says_that_it_starts(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "ENGINE_WAIT_S", 1.0)
    engine = await cast.engine(answer)
    engine.state = "starting"
    driver = await cast.driver()
    await cast.ask(request())
    await until(lambda: driver.waiting_for == "an engine")
    await asyncio.sleep(2.0)
    assert await cast.stage.facts("outcomes") == []
    engine.state = "ready"
    await cast.stage.wait_for("trace", EpisodeFinished)
    assert driver.waiting_for == ""


async def test_what_waits_in_an_engine_goes_to_one_that_joins(cast: Cast) -> None:
    engine_settings = msgspec.structs.replace(SETTINGS.engine, max_running_requests=1, max_pending=3)
    busy = await cast.engine(silence)
    await cast.driver(msgspec.structs.replace(SETTINGS, engine=engine_settings))
    for n in range(3):
        await cast.ask(request(f"e{n}"))
    await until(lambda: len(busy.asked) == 3)
    joined = await cast.engine(answer, "engine-1")
    await cast.stage.wait_for("trace", EpisodeFinished, n=2)
    await until(lambda: len(joined.asked) == 2)
    assert len(busy.handed_over) >= 2 and not busy.aborted
