"""The engine actor in front of real SGLang, over the real broker: what drivers are told, and what follows a server's death."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from engines.servers_for_tests import TOLERANCE, worst
from models.models_for_tests import VOCAB

from actors.engine import Engine
from asearch.agents.packed import pack_ids, unpack_ids
from asearch.engines.sglang.shared_memory import left_by
from schemas.commands import Generate, GenerationChunk
from schemas.events import PolicyPublished
from schemas.records import Column, Version, WeightManifest
from tests.actors.conftest import Stage
from tests.sglang.serving import CONTEXT_TOKENS, SETTINGS, START_S, alive, family
from tests.sim.scenario import SETTINGS as RUN

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1500)]
PROMPT = list(range(3, 40))
V1, V2 = Version(lineage=1, step=0), Version(lineage=1, step=1)


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.02)


@dataclass
class Heard:
    """What a driver was told of one request."""

    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    versions: list[tuple[Version, int, int]] = field(default_factory=list[tuple[Version, int, int]])
    finish: str | None = None
    error: str | None = None

    def take(self, chunk: GenerationChunk) -> None:
        self.finish, self.error = chunk.finish, chunk.error
        if not chunk.columns:
            return
        assert chunk.offset == len(self.ids)
        for run in chunk.versions:
            self.versions.append((run.version, chunk.offset + run.start, chunk.offset + run.end))
        self.ids += unpack_ids(chunk.columns["ids"].data)
        self.logprobs += memoryview(chunk.columns["logprobs"].data).cast("f").tolist()

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def check(self, models: Path, prompt: list[int]) -> None:
        """Every token fits the weights that it is said to be of, and each has been said to be of some."""
        at = 0
        for version, start, end in self.versions:
            assert start == at < end
            folder = models / ("v1" if version == V1 else "v2")
            assert worst(folder, prompt, self.ids, self.logprobs, start, end) <= TOLERANCE
            at = end
        assert at == len(self.ids) > 0


class Asking:
    """An engine with its server, a trainer that publishes, and a driver that asks."""

    def __init__(self, stage: Stage, models: Path) -> None:
        self.stage, self.models = stage, models
        self.heard: dict[str, Heard] = {}

    async def start(self) -> None:
        self.trainer, self.driver = await self.stage.connect("trainer"), await self.stage.connect("driver")

        async def note(incoming: Any) -> None:
            self.heard[incoming.message.request].take(incoming.message)

        await self.driver.subscribe(GenerationChunk, "driver-0", note)
        await self.publish(V1)
        agent = msgspec.structs.replace(RUN.agent, max_context_tokens=CONTEXT_TOKENS)
        context = await self.stage.context("engine-0", msgspec.structs.replace(RUN, engine=SETTINGS, agent=agent))
        self.engine = Engine(context, str(self.models / "v1"))
        self.life = asyncio.create_task(self.engine.run())
        await self.until_ready()

    async def until_ready(self) -> None:
        await until(lambda: self.engine.state == "ready" or self.life.done(), START_S)
        if self.life.done():
            self.life.result()

    async def publish(self, version: Version) -> None:
        path = self.models / ("v1" if version == V1 else "v2")
        manifest = WeightManifest(path=str(path), shards=[])
        event = PolicyPublished(id=f"p{version}", model="policy", version=version, parent=None, manifest=manifest)
        await self.trainer.append(event, "policy")

    async def ask(self, name: str, prompt: list[int], n_tokens: int) -> Heard:
        self.heard[name] = Heard()
        column = Column(dtype="u4", shape=(len(prompt),), data=pack_ids(prompt))
        command = Generate(
            request=name, episode="e", prompt=column, stop=[], max_new_tokens=n_tokens, temperature=0.7, seed=3,
            reply_to=self.driver.core_subject(GenerationChunk, "driver-0"),
        )  # fmt: skip
        await self.driver.publish(command, key="engine-0")
        return self.heard[name]

    async def answer(self, name: str, prompt: list[int], n_tokens: int = 30) -> Heard:
        heard = await self.ask(name, prompt, n_tokens)
        await until(lambda: heard.ended)
        return heard

    def server(self) -> psutil.Process:
        """The server that the engine has now."""
        (found,) = [each for each in psutil.Process().children() if str(self.models) in " ".join(each.cmdline())]
        return found

    async def end(self) -> None:
        self.engine.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await self.life


async def test_an_engine_serves_updates_refuses_and_replaces_its_server(stage: Stage, models: Path) -> None:
    asking = Asking(stage, models)
    await asking.start()
    left = left_by(asking.server().pid)
    assert left
    processes = family(asking.server().pid)
    assert len(processes) >= 3
    try:
        await _serves(asking)
        await _refuses(asking)
        await _replaces(asking, processes)
        assert not [each.path for each in left if each.path.exists()]
        left = left_by(asking.server().pid)
        processes = family(asking.server().pid)
    finally:
        await asking.end()
    await until(lambda: not alive(processes), 30.0)
    assert left and not [each.path for each in left if each.path.exists()]


async def _serves(asking: Asking) -> None:
    """A version that is published in flight parts the tokens exactly."""
    first = await asking.answer("first", PROMPT)
    assert (first.finish, first.error, len(first.ids)) == ("length", None, 30)
    assert {version for version, _, _ in first.versions} == {V1}
    first.check(asking.models, PROMPT)
    flights = [await asking.ask(f"flight-{i}", [*PROMPT, i], 400) for i in range(4)]
    await until(lambda: all(len(each.ids) >= 20 for each in flights))
    await asking.publish(V2)
    await until(lambda: all(each.ended for each in flights))
    for i, flight in enumerate(flights):
        assert (flight.finish, flight.error, len(flight.ids)) == ("length", None, 400)
        assert {version for version, _, _ in flight.versions} == {V1, V2}
        flight.check(asking.models, [*PROMPT, i])
    assert asking.engine.version == V2


async def _refuses(asking: Asking) -> None:
    """An id that would kill the server does not reach it."""
    running = await asking.ask("beside", PROMPT, 200)
    refused = await asking.answer("outside", [*PROMPT, VOCAB])
    assert refused.error == f"token id {VOCAB} of the prompt is outside the model's vocabulary of {VOCAB}"
    await until(lambda: running.ended)
    assert (running.finish, len(running.ids)) == ("length", 200)
    assert asking.engine.gauges()["n_server_starts"] == 1


async def _replaces(asking: Asking, processes: list[psutil.Process]) -> None:
    """After kill -9 the request under way is answered with an error, and the next server has the newest weights."""
    cut = await asking.ask("cut", PROMPT, 400)
    await until(lambda: len(cut.ids) >= 20)
    os.kill(processes[0].pid, signal.SIGKILL)
    await until(lambda: cut.ended and asking.engine.state == "starting")
    assert cut.error
    cut.check(asking.models, PROMPT)
    await until(lambda: not alive(processes), 30.0)
    await asking.until_ready()
    assert asking.engine.gauges()["n_server_starts"] == 2
    again = await asking.answer("again", PROMPT)
    assert {version for version, _, _ in again.versions} == {V2}
    again.check(asking.models, PROMPT)
