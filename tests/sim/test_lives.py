"""What a kill and a stop do to a life, at the level of the loop."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.sim.lives import GRAVES, Life, forget_the_dead
from tests.sim.virtual import StuckError, VirtualLoop, play


def lived(body: Callable[[], Awaitable[None]]) -> Life:
    """A life that does something, on the running loop."""
    life = Life("driver-0", 1)
    life.on_death = lambda _cause: life.kill()
    asyncio.get_running_loop().create_task(body(), context=life.context())  # type: ignore[arg-type]
    return life


def test_a_killed_life_takes_no_further_step_and_flushes_nothing(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []

    async def body() -> None:
        file = path.open("ab")
        file.write(b"in the buffer")
        try:
            await asyncio.gather(asyncio.sleep(10), other())
        except BaseException:
            seen.append("except")
            raise
        finally:
            seen.append("finally")
            file.close()

    async def other() -> None:
        await asyncio.sleep(1)
        seen.append("other")
        await asyncio.sleep(5)
        seen.append("too late")

    async def main() -> None:
        life = lived(body)
        await asyncio.sleep(2)
        life.kill()
        del life
        await asyncio.sleep(20)
        gc.collect()
        assert seen == ["other"]
        assert path.read_bytes() == b""

    play(main)
    assert GRAVES
    forget_the_dead()


def test_a_life_ends_at_any_step() -> None:
    async def main() -> None:
        for dies_at in range(1, 8):
            steps: list[int] = []

            async def body(steps: list[int] = steps) -> None:
                for n in range(20):
                    steps.append(n)
                    await asyncio.sleep(0)

            life = lived(body)
            life.dies_at = dies_at
            await asyncio.sleep(1)
            assert life.is_killed
            assert steps == list(range(dies_at - 1))

    play(main)
    forget_the_dead()


def test_a_stopped_life_does_what_was_due_when_it_goes_on() -> None:
    async def main() -> None:
        times: list[tuple[str, float]] = []
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def body() -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                times.append(("life", loop.time()))

        life = lived(body)
        await asyncio.sleep(1.5)
        life.stop()
        await asyncio.sleep(10)
        assert times == [("life", 1.0)]
        loop.resume(life.go_on())
        await asyncio.sleep(3)
        assert times == [("life", 1.0), ("life", 11.5), ("life", 12.5)]

    play(main)


def test_what_a_life_asks_of_another_belongs_to_the_other() -> None:
    """A callback that was set up by one life and is released by another one is a step of the first."""

    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seen: list[str] = []

        async def wait() -> None:
            await future
            seen.append("waited")

        async def release() -> None:
            future.set_result(None)
            seen.append("released")

        waiting = lived(wait)
        await asyncio.sleep(0)
        waiting.kill()
        lived(release)
        await asyncio.sleep(1)
        assert seen == ["released"]

    play(main)
    forget_the_dead()


def test_time_that_cannot_move_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StuckError):
        play(main)
