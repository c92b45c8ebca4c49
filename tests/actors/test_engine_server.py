"""An engine and its server: one that dies is replaced and has the newest weights before it serves; none gets ids that kill it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from models.models_for_tests import VOCAB, small_config, write_model

from actors.engine import Engine
from asearch.agents.packed import pack_ids
from asearch.configuration.loading import load_settings
from asearch.engines.client import EngineClient
from asearch.errors import EngineError
from schemas.commands import Generate, GenerationChunk
from schemas.events import PolicyPublished
from schemas.records import Column, Version, WeightManifest
from tests.actors.conftest import Stage
from tests.runtime.facts import until
from tests.runtime.test_inference_server import bare, starts


class Served:
    """An engine with a bare server, a trainer that publishes, and a driver that asks."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.heard: dict[str, GenerationChunk] = {}

    async def start(self) -> None:
        self.trainer, self.driver = await self.stage.connect("trainer"), await self.stage.connect("driver")

        async def note(incoming: Any) -> None:
            self.heard[incoming.message.request] = incoming.message

        await self.driver.subscribe(GenerationChunk, "driver-0", note)
        await self.publish(0)
        model = write_model(self.stage.folder / "model", small_config(), 0)
        engine = Engine(await self.stage.context("engine-0"), str(model), launch=bare(self.stage.folder))
        self.engine = engine
        await self.stage.start(engine)

    async def publish(self, step: int) -> None:
        version, manifest = Version(lineage=1, step=step), WeightManifest(path=str(self.stage.folder), shards=[])
        event = PolicyPublished(id=f"p{step}", model="policy", version=version, parent=None, manifest=manifest)
        await self.trainer.append(event, "policy")

    async def ask(self, name: str, *prompt: int) -> None:
        column = Column(dtype="u4", shape=(len(prompt),), data=pack_ids(list(prompt)))
        subject = self.driver.core_subject(GenerationChunk, "driver-0")
        command = Generate(request=name, episode="e", prompt=column, stop=[], max_new_tokens=4, temperature=1.0, reply_to=subject)
        await self.driver.publish(command, key="engine-0")

    def journal(self) -> list[str]:
        return (self.stage.folder / "journal").read_text().splitlines()


@pytest.fixture
async def served(stage: Stage) -> AsyncIterator[Served]:
    held = Served(stage)
    await held.start()
    yield held
    await stage.end(held.engine)


async def test_a_server_that_dies_is_replaced_and_gets_the_newest_weights_before_it_serves(served: Served) -> None:
    stage, engine = served.stage, served.engine
    await served.publish(1)
    await until(lambda: "update 1.1" in served.journal())
    await served.ask("r1", 5, 6)
    await until(lambda: "generate r1" in served.journal())
    os.kill(starts(stage.folder)[0], signal.SIGKILL)
    await until(lambda: "r1" in served.heard)
    assert served.heard["r1"].error
    await until(lambda: engine.state == "ready" and len(starts(stage.folder)) == 2)
    assert engine.version == Version(lineage=1, step=1)
    assert engine.gauges()["n_server_starts"] == 2
    await served.ask("r2", 5, 6)
    await until(lambda: "generate r2" in served.journal())
    again = served.journal().index(f"start {starts(stage.folder)[1]}")
    assert served.journal()[again + 1 :] == ["update 1.1", "generate r2"]


async def test_an_engine_that_gets_no_version_says_so(stage: Stage) -> None:
    context = await stage.context("engine-0", load_settings("toy", ("engine.start_timeout_s=0.2",)))
    server = EngineClient("http://127.0.0.1:9", cast("Any", None))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(20):
            await Engine(context, "", server=server).run()
    assert [type(error) for error in caught.value.exceptions] == [EngineError]
    assert "no published version was loaded within 0.2 s" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("prompt", [(5, VOCAB), (2**32 - 1,), ()])
async def test_ids_outside_the_vocabulary_never_reach_the_server(served: Served, prompt: tuple[int, ...]) -> None:
    await served.ask("bad", *prompt)
    await until(lambda: "bad" in served.heard)
    said = served.heard["bad"].error or ""
    assert ("is empty" if not prompt else f"outside the model's vocabulary of {VOCAB}") in said
    await served.ask("good", VOCAB - 1)
    await until(lambda: "generate good" in served.journal())
    assert "generate bad" not in served.journal()


async def test_the_servers_log_is_in_the_run(served: Served) -> None:
    assert (served.stage.folder / "logs" / "engine-0-server.log").is_file()
