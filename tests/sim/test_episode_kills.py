"""Drivers die at any fault point, and the broker loses what it had not synced: an episode goes on from what is recorded."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from actors.driver import Driver
from actors.engine import Engine
from actors.runtime.actor import Actor, Context
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.tool import Tool
from asearch.agents.packed import pack_ids
from asearch.agents.recorded import fact_of, fold, start_of, valid_facts
from asearch.agents.registry import make_agent
from asearch.agents.segments import segments
from asearch.engines.client import GeneratedChunk
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer, save_tokenizer
from asearch.tools.base import ToolSet
from schemas.codec import decode_event, decode_trajectory
from schemas.events import EpisodeFinished, EpisodeRequested, PolicyPublished, TokensGenerated, ToolRequested, ToolReturned
from schemas.records import Task, Version, WeightManifest
from tests.sim.faults import Troubles
from tests.sim.parts import WORDS, ScriptedServer, ScriptedTool
from tests.sim.scenario import SETTINGS
from tests.sim.virtual import VirtualLoop, VirtualPlatform

RUN = "r"
EPISODE = "e1"
MAX_LIVES = 4
LIMIT_S = 600.0
LEASE_S = 10.0
"""After which the episode is asked for again, if its driver let it go."""


def request(attempt: int, seed: int) -> EpisodeRequested:
    return EpisodeRequested(
        id=f"request-{attempt}",
        episode=EPISODE,
        group="g",
        member=0,
        members=1,
        slot=0,
        purpose="train",
        task=Task(id="task", question="Which colour is it?"),
        seed=seed,
        progress=0,
        recipe_hash="h",
        attempt=attempt,
    )


@dataclass
class Life:
    """One driver: killed at its n-th fault point; then TRACE loses its last messages. Losses may also come while it lives."""

    n_points: int
    n_lost: int
    n_lost_alive: int = 0


LIVES = st.lists(
    st.builds(Life, st.integers(1, 40), st.integers(0, 3), st.one_of(st.just(0), st.integers(1, 6))), max_size=MAX_LIVES
)


class WatchedServer(ScriptedServer):
    """Notes what it was asked, and what was recorded then."""

    def __init__(self, tokenizer: Tokenizer, seed: int, stage: "Stage") -> None:
        super().__init__(tokenizer, Troubles(seed, {"engine_break": 100}))
        self._stage = stage

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], *, rid: str, timeout_s: float
    ) -> AsyncGenerator[GeneratedChunk]:
        self._stage.asked.append((pack_ids(input_ids), self._stage.recorded_prompt()))
        async for chunk in super().generate(input_ids, sampling_params, rid=rid, timeout_s=timeout_s):
            yield chunk


@dataclass
class Stage:
    """One episode on an in-memory broker, with an engine and a tool that live throughout."""

    folder: Path
    model: Path
    seed: int
    lives: list[Life]
    asked: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    buses: list[MemoryBus] = field(default_factory=list[MemoryBus])
    n_killed: int = 0
    n_lost: int = 0
    n_reconciled: float = 0

    def run(self) -> "Stage":
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(self._play())
        return self

    async def _play(self) -> None:
        self.tokenizer = Tokenizer.load(self.model)
        self.agent = make_agent(SETTINGS.agent, self.tokenizer)
        self.broker = MemoryBroker(VirtualPlatform("broker", self.seed))
        self.bus = MemoryBus(self.broker, RUN, "scheduler", self.broker.platform)
        await self.bus.ensure_topology()
        (self.folder / "weights.bin").touch()
        published = PolicyPublished(
            id="p",
            model="policy",
            version=Version(lineage=1, step=0),
            parent=None,
            manifest=WeightManifest(path=str(self.folder), shards=[]),
        )
        await self.bus.append(published, "policy")
        server = WatchedServer(self.tokenizer, self.seed, self)
        tools = ToolSet(ScriptedTool("search", Troubles(self.seed)), ScriptedTool("access", Troubles(self.seed)))
        others = [
            self._start(Engine(self._context("engine-0"), str(self.model), server=server)),
            self._start(Tool(self._context("tool-0"), "", tools)),
        ]
        async with asyncio.timeout(LIMIT_S):
            for attempt, life in enumerate([*self.lives, Life(10**9, 0), Life(10**9, 0)]):
                if self._finished():
                    break
                await self._live(attempt, life)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for bus in self.buses:
            await bus.close()

    def _context(self, name: str, platform: VirtualPlatform | None = None) -> Context:
        platform = platform or VirtualPlatform(name, self.seed)
        bus = MemoryBus(self.broker, RUN, name[:-2], platform)
        self.buses.append(bus)
        return Context(RUN, self.folder, SETTINGS, bus, platform, name)

    def _start(self, actor: Actor) -> "asyncio.Task[None]":
        return asyncio.create_task(actor.run())

    async def _live(self, attempt: int, life: Life) -> None:
        """Ask for the episode and let one driver work on it until it ends or is killed."""
        n_points, killed = 0, asyncio.Event()

        def on_fault(name: str) -> bool:
            nonlocal n_points
            if name == "driver.started":
                return False
            n_points += 1
            if n_points == life.n_points // 2 and life.n_lost_alive:
                self._lose(life.n_lost_alive)
            if n_points == life.n_points:
                wire.cut()
                killed.set()
            return n_points >= life.n_points

        context = self._context("driver-0", VirtualPlatform(f"driver-{attempt}", self.seed, on_fault))
        wire = context.bus.wire  # pyright: ignore[reportAttributeAccessIssue]
        driver = Driver(context, str(self.model))
        task = self._start(driver)
        await self.bus.append(request(attempt, self.seed), EPISODE)
        idle_s = 0.0
        while not (killed.is_set() or driver.gauges()["n_done"] or driver.gauges()["n_abandoned"]) and idle_s < LEASE_S:
            await asyncio.sleep(0.05)
            idle_s = 0.0 if EPISODE in driver._held else idle_s + 0.05
        self.n_reconciled += driver.gauges()["n_reconciled"]
        await driver.bus.close()
        task.cancel()
        with suppress(asyncio.CancelledError, BaseExceptionGroup):
            await task
        self.n_killed += killed.is_set()
        if killed.is_set():
            self._lose(life.n_lost)

    def _lose(self, n: int) -> None:
        if n:
            self.n_lost += 1
            self.broker.stream(RUN, "trace").lose_tail(n)

    def _finished(self) -> bool:
        return any(isinstance(fact, EpisodeFinished) for fact in self.facts())

    def facts(self) -> list[Any]:
        """The facts of the episode that count."""
        records = self.broker.stream(RUN, "trace").records.values()
        return valid_facts(decode_event(record.data) for record in records)

    def folded(self) -> Any:
        """The state after them."""
        facts = [fact for each in self.facts() if (fact := fact_of(each)) is not None]
        return fold(self.agent, start_of(request(0, self.seed), SETTINGS.agent), facts)

    def recorded_prompt(self) -> bytes:
        """What an engine is asked for by whoever goes on from what is recorded: the prompt and the tokens held."""
        (pending,) = self.agent.pending(self.folded())
        return getattr(pending, "input_bytes", b"")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(build_tokenizer([" ".join(f"{word} is a colour. so seen" for word in WORDS)], 400), folder, 2000)
    return folder


async def _trajectory(stage: Stage, finished: EpisodeFinished) -> Any:
    assert finished.trajectory is not None
    return decode_trajectory(await MemoryBus(stage.broker, RUN, "viewer", stage.broker.platform).get_blob(finished.trajectory))


def check(stage: Stage) -> None:
    """The episode ended, its trace folds to what was stored, and nothing that was recorded was asked for again."""
    facts = stage.facts()
    finished = facts[-1]
    assert isinstance(finished, EpisodeFinished), facts
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        trajectory = runner.run(_trajectory(stage, finished))
    assert trajectory.segments == segments(stage.folded())
    returned: set[str] = set()
    held: dict[str, int] = {}
    for fact in facts:
        if isinstance(fact, ToolReturned):
            assert fact.call not in returned
            returned.add(fact.call)
        elif isinstance(fact, ToolRequested):
            assert fact.call not in returned
        elif isinstance(fact, TokensGenerated):
            assert fact.offset == held.get(fact.request, 0)
            held[fact.request] = fact.offset + fact.columns["ids"].shape[0]


@settings(
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10**6), lives=LIVES)
def test_an_episode_survives_its_drivers_and_the_brokers_losses(
    tmp_path: Path, model: Path, seed: int, lives: list[Life]
) -> None:
    stage = Stage(tmp_path, model, seed, lives).run()
    check(stage)
    if not any(life.n_lost_alive for life in lives):
        assert all(asked == recorded for asked, recorded in stage.asked), "what was recorded was asked for again"


def test_the_kills_and_losses_really_happen(tmp_path: Path, model: Path) -> None:
    stages = [Stage(tmp_path, model, seed, [Life(8, 2), Life(30, 0, 3), Life(9, 1)]).run() for seed in range(8)]
    for stage in stages:
        check(stage)
    assert sum(stage.n_killed for stage in stages) > 10
    assert sum(stage.n_lost for stage in stages) > 10
    assert sum(stage.n_reconciled for stage in stages) > 2
