"""A driver that falls silent loses its episodes: they are asked for again after `lease_s`."""

from actors.scheduler import Scheduler
from schemas.commands import Lease
from schemas.events import EpisodeRequested
from tests.actors.conftest import Stage
from tests.actors.test_scheduler import TASKS, publish, with_lease


async def test_the_episodes_of_a_silent_driver_are_asked_for_again(stage: Stage) -> None:
    await stage.start(Scheduler(await stage.context("scheduler-0", with_lease(1.0)), TASKS, []))
    await publish(stage)
    first = await stage.wait_for("plan", EpisodeRequested, n=27)
    episodes = [event.episode for event in first if isinstance(event, EpisodeRequested)]
    driver = await stage.connect("driver")
    await driver.publish(Lease(driver="driver-0", at_ns=0, episodes=episodes), key="driver-0")
    everything = await stage.wait_for("plan", EpisodeRequested, n=54, timeout_s=30.0)
    again = [event for event in everything[27:] if isinstance(event, EpisodeRequested)]
    assert {event.episode for event in again} == set(episodes)
    assert {event.attempt for event in again} == {1}
