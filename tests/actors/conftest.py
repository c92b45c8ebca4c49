"""Actors on a real broker; every test has a run of its own."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from actors.runtime.actor import Actor, Context
from actors.runtime.broker import Broker
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.configuration.settings import Settings
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer, save_tokenizer
from schemas.events import Event
from tests.runtime.conftest import broker as broker  # a fixture
from tests.sim.parts import WORDS
from tests.sim.scenario import SETTINGS


class Stage:
    """A run on the broker: buses, and actors that live until the test is over."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.run = f"t{uuid.uuid4().hex[:10]}"
        self.buses: list[Bus] = []
        self.living: list[tuple[Actor, asyncio.Task[None]]] = []
        self.drain_s = 2.0

    async def connect(self, kind: str) -> Bus:
        """A connection of an actor of this kind."""
        bus = await connect(self.broker.url, self.run, kind, SystemPlatform())
        self.buses.append(bus)
        return bus

    async def context(self, actor_id: str, settings: Settings = SETTINGS) -> Context:
        """What an actor is made with."""
        bus = await self.connect(actor_id.partition("-")[0])
        return Context(self.run, self.folder, settings, bus, bus.platform, actor_id)

    async def start(self, actor: Actor, state: str = "ready") -> Actor:
        """Let an actor live; returns when it is ready."""
        task = asyncio.create_task(actor.run(self.drain_s))
        self.living.append((actor, task))
        async with asyncio.timeout(10.0):
            while actor.state != state and not task.done():  # noqa: ASYNC110 -- a state has no event
                await asyncio.sleep(0.01)
        return actor

    async def end(self, actor: Actor) -> None:
        """Stop an actor and wait for its end; raises what it died of."""
        actor.stop()
        await self.task(actor)

    def task(self, actor: Actor) -> "asyncio.Task[None]":
        """The life of an actor."""
        return next(task for each, task in self.living if each is actor)

    async def kill(self, actor: Actor) -> None:
        """End an actor without any farewell."""
        await actor.bus.close()
        self.task(actor).cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await self.task(actor)

    async def facts(self, stream: str, *types: type[Event]) -> list[Event]:
        """What a stream holds now."""
        async with aclosing(self.buses[0].read(stream, events=types, follow=False)) as reader:
            return [stored.event async for stored in reader if stored.event is not None]

    async def wait_for(self, stream: str, *types: type[Event], n: int = 1, timeout_s: float = 30.0) -> list[Event]:
        """The first `n` facts of these types."""
        found: list[Event] = []
        async with asyncio.timeout(timeout_s), aclosing(self.buses[0].read(stream, events=types)) as reader:
            async for stored in reader:
                if stored.event is not None:
                    found.append(stored.event)
                if len(found) == n:
                    return found
        return found

    async def close(self) -> None:
        """End everything."""
        for actor, task in self.living:
            actor.stop()
            task.cancel()
        for _, task in self.living:
            with contextlib.suppress(BaseException):
                await task
        for bus in self.buses:
            await bus.close()


@pytest.fixture
async def stage(broker: Broker, tmp_path: Path) -> AsyncIterator[Stage]:
    """A fresh run with its streams."""
    held = Stage(broker, tmp_path)
    await (await held.connect("viewer")).ensure_topology()
    yield held
    await held.close()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(build_tokenizer([" ".join(f"{word} is a colour. so seen" for word in WORDS)], 400), folder, 2000)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(model_dir: str) -> Tokenizer:
    """That tokenizer."""
    return Tokenizer.load(model_dir)
