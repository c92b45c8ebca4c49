"""An episode that no engine serves is the infrastructure's failure, not the policy's."""

import pytest

from actors import driver as module
from schemas.events import EpisodeDropped, EpisodeFinished
from tests.actors.test_driver import Cast, request
from tests.actors.test_driver import cast as cast  # a fixture


async def test_without_an_engine_an_episode_is_dropped_and_not_graded(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENGINE_WAIT_S", 0.3)
    await cast.driver()
    await cast.ask(request())
    (outcome,) = await cast.stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDropped)
    assert outcome.reason == "engine_outage"
    assert not any(isinstance(event, EpisodeFinished) for event in await cast.trace())
