"""A whole run on a real broker in one process: every actor as it is shipped, with scripted compute, kept alive."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from actors.cli.auditing.evidence import gather
from actors.cli.auditing.findings import audit
from actors.cli.auditing.problems import Problems
from actors.driver import Driver
from actors.engine import Engine
from actors.grader import Grader
from actors.recorder import Recorder
from actors.runtime.actor import Actor, Context
from actors.runtime.jetstream import JetStreamBus, connect
from actors.runtime.platform import SystemPlatform
from actors.scheduler import Scheduler
from actors.tool import Tool
from actors.trainer import Trainer
from asearch.configuration.settings import CheckpointSettings, EvaluationSettings, RunSettings, Settings
from asearch.data.tasks import LoadedTask
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer, save_tokenizer
from asearch.tools.base import ToolSet
from schemas.events import Outcome, RunEnded
from tests.sim.faults import Troubles
from tests.sim.parts import WORDS, ScriptedRank, ScriptedServer, ScriptedTool
from tests.sim.scenario import AGENT

RUN = "whole"
NAMES = ("trainer-0", "engine-0", "grader-0", "tool-0", "driver-0", "recorder-0", "scheduler-0")
EFFECTS = {"trainer": "step", "engine": "n_requests", "grader": "n_graded", "tool": "n_calls", "recorder": "n_archived"}
"""By kind: the gauge that grows when it works. Drivers and schedulers show in their streams."""
STREAMS = {"driver": "trace", "scheduler": "plan"}
RESTART_DELAY_S = 0.3


def settings_of(steps: int) -> Settings:
    """A run of some seconds a step."""
    return Settings(
        run=RunSettings(
            steps=steps, groups_per_step=3, group_size=3, eta=2, max_groups_in_flight=12, episode_deadline_s=120.0, lease_s=4.0
        ),
        agent=AGENT,
        evaluation=EvaluationSettings(questions=4),
        checkpoint=CheckpointSettings(every_steps=2),
    )


class WholeRun:
    """The run; `deaths` holds what actors died of."""

    def __init__(self, url: str, folder: Path, steps: int) -> None:
        self._url = url
        self.folder = folder
        self.settings = settings_of(steps)
        self.actors: dict[str, Actor] = {}
        self.deaths: list[tuple[str, BaseException]] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self.bus: JetStreamBus

    async def begin(self, bus: JetStreamBus) -> None:
        """Start every actor; `bus` is the supervisor's."""
        self.bus = bus
        self.folder.mkdir(parents=True, exist_ok=True)
        words = " ".join(f"{word} is a colour. Which colour is it? so seen" for word in WORDS)
        save_tokenizer(build_tokenizer([words], 400), self.folder / "model", 2000)
        self._tokenizer = Tokenizer.load(self.folder / "model")
        self._keepers = [asyncio.create_task(self._keep(name), name=f"keep {name}") for name in NAMES]

    async def _keep(self, name: str) -> None:
        while not self._stopping:
            bus = await connect(self._url, RUN, name.partition("-")[0], SystemPlatform(), timeout_s=30.0)
            context = Context(RUN, self.folder, self.settings, bus, bus.platform, name)
            self.actors[name] = self._build(name.partition("-")[0], context)
            try:
                await self.actors[name].run(5.0)
                return
            except Exception as error:
                self.deaths.append((name, error))
                await asyncio.sleep(RESTART_DELAY_S)
            finally:
                await bus.close()

    def _build(self, kind: str, context: Context) -> Actor:
        model, troubles = str(self.folder / "model"), Troubles(0)
        tasks = [
            LoadedTask(id=f"task-{n}", question=f"Which colour is it? {WORDS[n % 4]}", answers=[WORDS[n % 4]]) for n in range(24)
        ]
        builders: dict[str, Callable[[], Actor]] = {
            "scheduler": lambda: Scheduler(context, tasks[:20], tasks[20:]),
            "driver": lambda: Driver(context, model),
            "engine": lambda: Engine(context, model, server=ScriptedServer(self._tokenizer, troubles)),
            "tool": lambda: Tool(context, "", ToolSet(*(ScriptedTool(name, troubles) for name in ("search", "access")))),
            "grader": lambda: Grader(context),
            "trainer": lambda: Trainer(context, model, self.folder / "weights", ScriptedRank(troubles, 300)),
            "recorder": lambda: Recorder(context),
        }
        return builders[kind]()

    async def n_outcomes(self) -> int:
        """Outcomes so far."""
        return await self.bus.last_sequence("outcomes")

    async def until_outcomes(self, n: int, timeout_s: float = 90.0) -> None:
        """Wait for the n-th outcome."""
        async with asyncio.timeout(timeout_s), aclosing(self.bus.read("outcomes", events=())) as outcomes:
            async for stored in outcomes:
                if isinstance(stored.event, Outcome) and stored.sequence >= n:
                    return

    async def effects(self) -> dict[str, float]:
        """By kind: a number that grows when it works."""
        found = {kind: self.actors[f"{kind}-0"].gauges().get(gauge, 0.0) for kind, gauge in EFFECTS.items()}
        for kind, stream in STREAMS.items():
            found[kind] = float((await self.bus.stream_info(stream)).last_sequence)
        return found

    async def recovery_s(self, before: dict[str, float], since_s: float, timeout_s: float) -> dict[str, float]:
        """Seconds from `since_s` to the first effect of each kind. Raises TimeoutError naming those that show none."""
        first: dict[str, float] = {}
        clock = asyncio.get_running_loop().time
        while len(first) < len(before):
            for kind, value in (await self.effects()).items():
                if value > before[kind]:
                    first.setdefault(kind, round(clock() - since_s, 2))
                # TRACE may have lost its tail.
                before[kind] = min(before[kind], value)
            if clock() - since_s > timeout_s:
                raise TimeoutError(f"no effect of {sorted(set(before) - set(first))} within {timeout_s:g} s; {self.deaths}")
            await asyncio.sleep(0.05)
        return first

    async def until_ended(self, timeout_s: float) -> RunEnded:
        """Wait for the end of the run."""
        async with asyncio.timeout(timeout_s), aclosing(self.bus.read("plan", events=(RunEnded,))) as plan:
            async for stored in plan:
                if isinstance(stored.event, RunEnded):
                    return stored.event
        raise AssertionError("the plan ended before the run")

    async def check(self) -> dict[str, Any]:
        """Stop every actor; the audit's terms, with no problem and both identities."""
        self._stopping = True
        await asyncio.sleep(2 * RESTART_DELAY_S)
        for name in reversed(NAMES):
            self.actors[name].stop()
        await asyncio.wait(self._keepers, timeout=30.0)
        problems = Problems()
        terms = audit(await gather(self.bus, self.folder, problems), problems)
        assert problems.lines() == []
        accounting = terms["accounting"]
        assert accounting["requested"] == accounting["graded"] + accounting["dropped"] + accounting["dead"]
        assert accounting["graded"] == accounting["counted"] + accounting["discarded"] + accounting["queued"]
        assert accounting["in_flight"] == 0
        return accounting

    async def close(self) -> None:
        """Cancel what is left."""
        for keeper in self._keepers:
            keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._keepers, return_exceptions=True)
