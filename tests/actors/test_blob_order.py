"""A payload is stored before the fact that refers to it, so that a crash between the two leaves no broken reference."""

import pytest

from actors.driver import Driver
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from asearch.errors import StreamFullError
from schemas.events import EpisodeFinished
from tests.actors.acting import answer
from tests.actors.test_driver import Cast, request
from tests.actors.test_driver import cast as cast  # a fixture


async def test_the_trajectory_is_stored_before_the_episode_is_finished(cast: Cast) -> None:
    await cast.engine(answer)
    context = await cast.stage.context("driver-0")
    n_stored: list[int] = []

    async def look(name: str) -> None:
        if name == "driver.blob_stored":
            n_stored.append((await cast.stage.buses[0].stream_info("blobs")).n_messages)

    context.platform.fault = look  # type: ignore[method-assign]
    await cast.stage.start(Driver(context, cast.model_dir))
    await cast.ask(request())
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert n_stored == [1]
    assert isinstance(finished, EpisodeFinished)
    assert finished.trajectory is not None
    assert len(await cast.stage.buses[0].get_blob(finished.trajectory)) == finished.trajectory.size_bytes


async def test_chunks_that_are_not_taken_are_an_error_of_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One like that of a payload of one chunk: whoever waits and tries again asks for no other."""
    bus = MemoryBus(MemoryBroker(SystemPlatform(0)), "r", "driver", SystemPlatform(0))

    async def full(*_: object, **__: object) -> int:
        raise StreamFullError("full")

    monkeypatch.setattr(bus, "append", full)
    for size in (1, 3 << 20):
        with pytest.raises(StreamFullError):
            await bus.put_blob("e1", bytes(size))
