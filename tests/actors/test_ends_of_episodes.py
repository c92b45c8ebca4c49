"""Who may end an episode, and that what has ended is not begun again."""

import asyncio

import msgspec
import pytest

from actors import driver as module
from schemas.events import EpisodeDropped, EpisodeFinished, EpisodeTaken
from tests.actors.acting import answer, silence
from tests.actors.test_driver import Cast, request, taken
from tests.actors.test_driver import cast as cast  # a fixture
from tests.runtime.facts import dropped, until
from tests.sim.scenario import SETTINGS


async def test_an_episode_that_has_ended_is_not_driven_again(cast: Cast) -> None:
    """Its facts may be purged: the outcome alone tells."""
    scheduler = await cast.stage.connect("scheduler")
    await scheduler.append(dropped("e1", "run_ended"), "e1", expected=0)
    engine = await cast.engine(answer)
    await cast.driver()
    await cast.ask(request(), request("e2"))
    await cast.stage.wait_for("trace", EpisodeFinished)
    assert [command.episode for command in engine.asked] == ["e2"]
    assert await cast.trace("e1") == []


async def test_a_driver_that_was_replaced_does_not_end_the_episode(cast: Cast) -> None:
    """Its own deadline passes while another driver goes on."""
    engine = await cast.engine(silence)
    settings = msgspec.structs.replace(SETTINGS, run=msgspec.structs.replace(SETTINGS.run, episode_deadline_s=1.0))
    held = await cast.driver(settings)
    await cast.ask(request())
    await until(lambda: len(engine.asked) == 1)
    other = await cast.stage.connect("driver")
    stored = await other.read_key("trace", "e1")
    await other.append(taken("driver-9", request(attempt=1)), "e1", expected=stored[-1].sequence)
    await until(lambda: held.gauges()["n_episodes"] == 0)
    await asyncio.sleep(0.1)
    assert await cast.stage.facts("outcomes") == []
    assert [event.driver for event in await cast.trace() if isinstance(event, EpisodeTaken)] == ["driver-0", "driver-9"]


async def test_without_an_engine_an_episode_is_dropped_and_not_graded(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENGINE_WAIT_S", 0.3)
    await cast.driver()
    await cast.ask(request())
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDropped)
    assert outcome.reason == "engine_outage"
    assert not any(isinstance(event, EpisodeFinished) for event in await cast.trace())
