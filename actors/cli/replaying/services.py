"""What a counterfactual episode is driven with: an engine by its URL or with a run's newest weights, and the run's tools."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import aiohttp
import msgspec

from actors.runtime.platform import Platform
from actors.runtime.rank_group import start_ranks
from actors.runtime.run_files import RunFile
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import is_live
from asearch.agents.episode import GenerateRequest, ToolCall
from asearch.agents.packed import unpack_ids
from asearch.configuration.settings import Settings
from asearch.data.worlds.files import CORPUS
from asearch.engines.client import EngineClient, GeneratedChunk
from asearch.errors import EngineError, InputError
from asearch.tools.access import AccessTool
from asearch.tools.base import ToolSet
from asearch.tools.client import CorpusClient
from asearch.tools.search import SearchTool
from asearch.training import checkpoints
from schemas.events import PolicyPublished
from schemas.local import CheckpointRestored, ExportWeights, LoadModel, ModelLoaded, RestoreCheckpoint, WeightsExported
from schemas.records import ToolResult, Version

START_TIMEOUT_S = 120.0
RANK_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.05
NEWEST = "newest"
Say = Callable[[str], None]


class EngineService:
    """Generates through one server."""

    def __init__(self, client: EngineClient, rid: str, timeout_s: float) -> None:
        self._client = client
        self._rid = rid
        self._timeout_s = timeout_s
        self._n_asked = 0

    async def generate(self, asked: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        """The tokens that follow. Raises EngineError."""
        self._n_asked += 1
        parameters = {
            "max_new_tokens": asked.max_new_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "stop": list(asked.stop),
            "sampling_seed": asked.seed,
        }
        ids = unpack_ids(asked.input_bytes)
        rid = f"{self._rid}-{self._n_asked}"
        async with aclosing(self._client.generate(ids, parameters, rid=rid, timeout_s=self._timeout_s)) as chunks:
            async for chunk in chunks:
                yield chunk


class ToolService:
    """Calls the tools of a run."""

    def __init__(self, tools: ToolSet, deadline_s: float) -> None:
        self._tools = tools
        self._deadline_s = deadline_s

    async def call(self, asked: ToolCall) -> ToolResult:
        """The result of a call."""
        return await self._tools.call(asked.tool, asked.argument, deadline_s=self._deadline_s)


@contextlib.asynccontextmanager
async def tools_of(
    source: RunSource, settings: Settings, platform: Platform, session: aiohttp.ClientSession, say: Say
) -> AsyncGenerator[ToolService]:
    """The tools of a run, over its corpus server; one is started for the time if the run is not live."""
    async with contextlib.AsyncExitStack() as stack:
        url = source.content.corpus_url
        if not is_live(source.content) or not url:
            say("starting the run's corpus server")
            url = await stack.enter_async_context(_server(platform, _corpus_command(source), "the corpus server"))
        client = CorpusClient(
            url,
            session,
            sleep=platform.sleep,
            now_ns=lambda: int(platform.monotonic() * 1e9),
            limits=settings.tools.limits,
        )
        tools = ToolSet(SearchTool(client, settings.agent.topk), AccessTool(client))
        yield ToolService(tools, settings.tools.deadline_s)


def _corpus_command(source: RunSource) -> list[str]:
    data = source.content.settings.data
    corpus = Path(data.corpus).resolve() if data.corpus else source.run_dir / "data" / CORPUS
    if not corpus.is_file():
        raise InputError(f"the corpus of run '{source.run}' is not at {corpus} any more: its tools cannot be called")
    pages = ["--pages", str(Path(data.pages).resolve())] if data.pages else []
    return [sys.executable, "-m", "asearch.corpus", "--corpus", str(corpus), *pages, "--port", "0", "--die-with-parent"]


@contextlib.asynccontextmanager
async def engine_at(
    engine: str, source: RunSource, platform: Platform, session: aiohttp.ClientSession, say: Say
) -> AsyncGenerator[tuple[str, EngineClient]]:
    """Where the engine is, and its client. `newest` starts an embedded one with the run's newest weights.

    Raises EngineError where nothing answers.
    """
    async with contextlib.AsyncExitStack() as stack:
        url = engine
        if engine == NEWEST:
            folder, version = await stack.enter_async_context(_newest_weights(source, platform, say))
            command = _engine_command(source.content, folder, version)
            say(f"starting an embedded engine with the weights {version}")
            url = await stack.enter_async_context(_server(platform, command, "the engine"))
        client = EngineClient(url, session)
        if not await client.health():
            raise EngineError(f"no engine answers at {url}: name the URL of a server with SGLang's interface, or `{NEWEST}`")
        yield url, client


def _engine_command(content: RunFile, folder: Path, version: str) -> list[str]:
    settings = content.settings
    return [
        *(sys.executable, "-m", "asearch.engines.embedded", "--model-path", str(folder), "--weight-version", version),
        *("--host", "127.0.0.1", "--port", "0", "--threads", str(settings.engine.threads), "--die-with-parent"),
        *("--context-length", str(settings.agent.max_context_tokens), "--seed", str(settings.seed)),
    ]


@contextlib.asynccontextmanager
async def _newest_weights(source: RunSource, platform: Platform, say: Say) -> AsyncGenerator[tuple[Path, str]]:
    """Folder and name of a run's newest weights: published, else of its newest checkpoint, else those that it began with."""
    published = await source.bus.get_last(PolicyPublished, "policy") if source.bus is not None else None
    event = published.event if published is not None else None
    if isinstance(event, PolicyPublished) and Path(event.manifest.path).is_dir():
        yield Path(event.manifest.path), str(event.version)
        return
    found = await asyncio.to_thread(checkpoints.newest, source.run_dir / "checkpoints")
    if found is None:
        say("no checkpoint: taking the model that the run began with")
        yield Path(source.content.model_dir), "0.0"
        return
    with tempfile.TemporaryDirectory(prefix="asearch-weights-") as aside:
        path, manifest = found
        version = Version(lineage=manifest.lineage, step=manifest.step)
        say(f"exporting the weights of checkpoint {path.name}")
        target = Path(aside) / "weights"
        await _export(source.content, path, target, version, platform, Path(aside) / "rank.log")
        yield target, str(version)


async def _export(content: RunFile, checkpoint: Path, target: Path, version: Version, platform: Platform, log_path: Path) -> None:
    rank = await start_ranks(platform, content.settings.trainer, log_path)
    try:
        settings = msgspec.json.encode(content.settings.trainer)
        load = LoadModel(model_dir=content.model_dir, settings=settings, seed=content.settings.seed)
        await rank.ask(load, ModelLoaded, RANK_TIMEOUT_S)
        await rank.ask(RestoreCheckpoint(path=str(checkpoint)), CheckpointRestored, RANK_TIMEOUT_S)
        await rank.ask(ExportWeights(path=str(target), version=version, fsync=False), WeightsExported, RANK_TIMEOUT_S)
    finally:
        await rank.stop()


@contextlib.asynccontextmanager
async def _server(platform: Platform, command: list[str], what: str) -> AsyncGenerator[str]:
    """The URL of a server process that lives as long as this. Raises EngineError, with the end of its log."""
    with tempfile.TemporaryDirectory(prefix="asearch-server-") as folder:
        port_file, log_path = Path(folder) / "port", Path(folder) / "log"
        process = await platform.spawn([*command, "--port-file", str(port_file)], log_path=log_path)
        try:
            deadline_s = platform.monotonic() + START_TIMEOUT_S
            while not port_file.is_file():
                if process.returncode is not None or platform.monotonic() > deadline_s:
                    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
                    raise EngineError(f"{what} did not start within {START_TIMEOUT_S:g} s; the end of its log:\n{tail}")
                await platform.sleep(POLL_S)
            yield f"http://127.0.0.1:{int(port_file.read_text())}"
        finally:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
