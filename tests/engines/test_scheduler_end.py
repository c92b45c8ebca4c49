"""The scheduler's thread ends before the event loop does, or is not heard of any more."""

import asyncio
import threading
from typing import Any, cast

import pytest
from aiohttp import web

from asearch.engines.embedded.batch import Batch
from asearch.engines.embedded.run import close
from asearch.engines.embedded.scheduler import Scheduler


class LongStep:
    """A batch whose step lasts until `go`, and has something to tell then."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.advanced: list[Any] = []
        self.n_generated = 0

    def step(self) -> bool:
        self.begun.set()
        assert self.go.wait(10)
        self.advanced.append((Told(), 1, None))
        return True


class Told:
    """A request."""

    def advance(self, *_: object) -> None:
        """It does not matter."""


class Connections:
    """That close at once, while the step goes on."""

    def __init__(self, batch: LongStep) -> None:
        self._batch = batch

    async def cleanup(self) -> None:
        asyncio.get_running_loop().call_later(0.2, self._batch.go.set)


def scheduler_of(batch: LongStep, loop: asyncio.AbstractEventLoop) -> Scheduler:
    scheduler = Scheduler(cast("Batch", batch), loop, 1)
    scheduler.start()
    assert batch.begun.wait(10)
    return scheduler


async def test_the_thread_has_ended_when_the_server_has() -> None:
    batch = LongStep()
    scheduler = scheduler_of(batch, asyncio.get_running_loop())
    await close(cast("web.ServerRunner", Connections(batch)), scheduler)
    assert not scheduler.alive


def test_a_step_that_outlasts_the_loop_ends_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda given: errors.append(given.exc_value))
    batch, loop = LongStep(), asyncio.new_event_loop()
    scheduler = scheduler_of(batch, loop)
    scheduler.stop()
    assert not scheduler.join(0.05)
    loop.close()
    batch.go.set()
    assert scheduler.join(10) and not errors
