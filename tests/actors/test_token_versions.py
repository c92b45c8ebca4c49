"""The version of a token is what the server says of its span, whatever the driver asked for and the engine holds by then."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.engine import Engine
from asearch.agents.packed import pack_ids, pack_logprobs
from asearch.engines.client import GeneratedChunk, VersionSpan
from schemas.commands import Generate, GenerationChunk
from schemas.events import EpisodeFinished, PolicyPublished, TokensGenerated
from schemas.records import Column, Version, VersionRun, WeightManifest
from tests.actors.acting import ActingEngine
from tests.actors.conftest import Stage
from tests.actors.test_driver import Cast, request
from tests.actors.test_driver import cast as cast  # a fixture
from tests.runtime.facts import until

OLD, NEW = Version(lineage=1, step=3), Version(lineage=1, step=4)


async def test_a_driver_records_the_versions_that_the_engine_told(cast: Cast) -> None:
    async def two_versions(engine: ActingEngine, command: Generate) -> None:
        ids = engine.ids(" so </think> <answer> red </answer>")
        runs = [VersionRun(version=OLD, start=0, end=2), VersionRun(version=NEW, start=2, end=len(ids))]
        columns = {
            "ids": Column(dtype="u4", shape=(len(ids),), data=pack_ids(ids)),
            "logprobs": Column(dtype="f4", shape=(len(ids),), data=pack_logprobs([-0.5] * len(ids))),
        }
        chunk = GenerationChunk(
            request=command.request, offset=0, columns=columns, versions=runs, engine=engine.name, finish="stop"
        )
        await engine.bus.publish(chunk, subject=command.reply_to)

    await cast.engine(two_versions)
    await cast.driver()
    await cast.ask(request())
    (finished,) = await cast.stage.wait_for("trace", EpisodeFinished)
    assert isinstance(finished, EpisodeFinished)
    assert finished.oldest == OLD
    (tokens,) = [event for event in await cast.trace() if isinstance(event, TokensGenerated)]
    assert [run.version for run in tokens.versions] == [OLD, NEW]


class TwoVersionServer:
    """Generates under one version, is given the next, and tells of both."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.updated = asyncio.Event()

    async def pause(self, mode: str = "retract") -> None:
        """Nothing runs."""

    async def resume(self) -> None:
        """Nothing runs."""

    async def update_weights(self, path: str, version: str) -> None:
        """Note it."""
        self.loaded.append(version)
        if len(self.loaded) == 2:
            self.updated.set()

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], *, rid: str, timeout_s: float
    ) -> AsyncGenerator[GeneratedChunk]:
        """Two tokens of the old version, told after the new one was loaded, and one of the new."""
        await self.updated.wait()
        spans = [VersionSpan(str(OLD), 5, 7), VersionSpan(str(NEW), 7, 8)]
        yield GeneratedChunk(
            offset=5, ids=[1, 2, 3], logprobs=[-1.0] * 3, versions=spans, finish="stop", matched=None, n_prompt=1, n_cached=0
        )


async def test_an_engine_tells_the_versions_that_its_server_told(stage: Stage, tmp_path: Path) -> None:
    server = TwoVersionServer()
    trainer, driver = await stage.connect("trainer"), await stage.connect("driver")
    heard: list[GenerationChunk] = []

    async def note(incoming: Any) -> None:
        heard.append(incoming.message)

    await driver.subscribe(GenerationChunk, "driver-0", note)

    async def publish(version: Version) -> None:
        manifest = WeightManifest(path=str(tmp_path), shards=[])
        event = PolicyPublished(id=f"p{version}", model="policy", version=version, parent=None, manifest=manifest)
        await trainer.append(event, "policy")

    await publish(OLD)
    await stage.start(Engine(await stage.context("engine-0"), "", server=server))
    prompt = Column(dtype="u4", shape=(1,), data=pack_ids([7]))
    command = Generate(
        request="r", episode="e1", prompt=prompt, stop=[], max_new_tokens=9, temperature=1.0, top_p=1.0, top_k=-1, seed=0,
        min_step=0, reply_to=driver.core_subject(GenerationChunk, "driver-0"),
    )  # fmt: skip
    await driver.publish(command, key="engine-0")
    await publish(NEW)
    await until(lambda: bool(heard))
    assert server.loaded == [str(OLD), str(NEW)]
    (chunk,) = heard
    assert [(run.version, run.start, run.end) for run in chunk.versions] == [(OLD, 0, 2), (NEW, 2, 3)]
