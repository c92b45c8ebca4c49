"""A driver that takes over in the middle of a generation asks for the rest of it, not for what is recorded."""

from actors.driver import Driver
from schemas.commands import Generate
from schemas.events import EpisodeFinished, TokensGenerated
from tests.actors.acting import ActingEngine, prompt_of
from tests.actors.test_driver import Cast, request
from tests.actors.test_driver import cast as cast  # a fixture
from tests.runtime.facts import until

ANSWER = " so </think> <answer> red </answer>"


async def test_tokens_of_the_dead_driver_are_kept(cast: Cast) -> None:
    async def script(engine: ActingEngine, command: Generate) -> None:
        ids = engine.ids(ANSWER)
        if len(engine.asked) == 1:
            await engine.say(command, ids[:3], finish=None)
        else:
            n_held = len(prompt_of(command)) - len(prompt_of(engine.asked[0]))
            await engine.say(command, ids[n_held:])

    engine = await cast.engine(script)
    first = await cast.driver()
    await cast.ask(request())
    await cast.stage.wait_for("trace", TokensGenerated)
    await cast.stage.kill(first)
    second = Driver(await cast.stage.context("driver-1"), cast.model_dir)
    await cast.stage.start(second)
    await cast.ask(request(attempt=1))
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished)
    assert finished.answer == "red"
    asked, again = engine.asked
    assert prompt_of(again) == prompt_of(asked) + engine.ids(ANSWER)[:3]
    assert again.max_new_tokens == asked.max_new_tokens - 3
    await until(lambda: second.gauges()["n_done"] == 1)
