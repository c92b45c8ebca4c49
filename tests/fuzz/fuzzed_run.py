"""A run of the shipped actors on a real broker, with scripted compute, while messages that nobody should send come in."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from actors.cli.auditing.evidence import gather
from actors.cli.auditing.findings import audit
from actors.cli.auditing.problems import Problems
from actors.driver import Driver
from actors.engine import Engine
from actors.grader import Grader
from actors.recorder import Recorder
from actors.runtime.actor import Actor
from actors.scheduler import Scheduler
from actors.tool import Tool
from actors.trainer import Trainer
from asearch.configuration.settings import Settings
from asearch.data.tasks import LoadedTask
from asearch.errors import BusError
from asearch.models.tokenizer import Tokenizer
from asearch.tools.base import ToolSet
from schemas.events import EventRefused, RunEnded
from schemas.topology import MAX_PAYLOAD_BYTES
from tests.actors.conftest import Stage
from tests.fuzz.generator import Generator
from tests.sim.faults import Troubles
from tests.sim.parts import WORDS, ScriptedRank, ScriptedServer, ScriptedTool
from tests.sim.scenario import SETTINGS

READ = ("plan", "trace", "outcomes", "policy")
"""Streams of which every message is read. A message of BLOBS is read when an event refers to it, and DEAD by people."""


class FuzzedRun:
    """Good episodes and noise in one run."""

    def __init__(self, stage: Stage, model_dir: str, folder: Path, *, steps: int, seed: int) -> None:
        self.stage, self.model_dir, self.folder = stage, model_dir, folder
        self.settings: Settings = msgspec.structs.replace(
            SETTINGS, run=msgspec.structs.replace(SETTINGS.run, steps=steps, lease_s=6.0)
        )
        self.generator = Generator(stage.run, seed)
        self.sent: dict[tuple[str, int], bytes] = {}
        self.n_refused_by_broker = 0
        self.graded_at_s: list[float] = []
        self._troubles = Troubles(seed)

    async def start(self) -> None:
        """Let every kind of actor live."""
        tokenizer, troubles = Tokenizer.load(self.model_dir), self._troubles
        tasks = [LoadedTask(id=f"task-{n}", question=f"Which? {WORDS[n % 4]}", answers=[WORDS[n % 4]]) for n in range(24)]
        tools = ToolSet(*(ScriptedTool(name, troubles) for name in ("search", "access")))
        contexts = {
            kind: await self.stage.context(f"{kind}-0", self.settings)
            for kind in ("trainer", "engine", "grader", "tool", "driver", "recorder", "scheduler")
        }
        rank = ScriptedRank(troubles, 100)
        await self._start(Engine(contexts["engine"], self.model_dir, server=ScriptedServer(tokenizer, troubles)), "starting")
        await self._start(Trainer(contexts["trainer"], self.model_dir, self.folder / "weights", rank))
        await self._start(Grader(contexts["grader"]))
        await self._start(Tool(contexts["tool"], "", tools))
        await self._start(Driver(contexts["driver"], self.model_dir))
        await self._start(Recorder(contexts["recorder"]))
        await self._start(Scheduler(contexts["scheduler"], tasks[:20], tasks[20:]))

    async def _start(self, actor: Actor, state: str = "ready") -> None:
        await self.stage.start(actor, state)

    async def fuzz(self, n: int, per_s: float) -> None:
        """Send `n` messages at a steady rate."""
        bus = await self.stage.connect("operator")
        begun_s = time.monotonic()
        for number, (stream, subject, data) in enumerate(self.generator.messages(n)):
            if (ahead_s := number / per_s - (time.monotonic() - begun_s)) > 0:
                await asyncio.sleep(ahead_s)
            if number % 200 == 0:
                await self._learn_keys()
            if len(data) > MAX_PAYLOAD_BYTES:
                self.n_refused_by_broker += 1
                continue
            try:
                self.sent[stream, await bus.append_bytes(subject, data, f"fuzz-{number}")] = data
            except BusError:
                self.n_refused_by_broker += 1

    async def _learn_keys(self) -> None:
        requests = [event.episode for event in await self.stage.facts("plan") if hasattr(event, "episode")]
        self.generator.keys = {
            "plan": [*requests[-20:], self.stage.run],
            "trace": requests[-20:],
            "outcomes": requests[-20:],
            "policy": ["policy"],
        }

    async def ended(self, timeout_s: float) -> RunEnded:
        """The end of the run."""
        (event,) = await self._unless_one_dies(self.stage.wait_for("plan", RunEnded, timeout_s=timeout_s))
        assert isinstance(event, RunEnded)
        return event

    async def _unless_one_dies(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """What is waited for. Raises AssertionError: with the deaths as soon as there is one, with all states at the timeout."""
        task = asyncio.ensure_future(waiting)
        try:
            while not (await asyncio.wait([task], timeout=0.5))[0]:
                assert not self.deaths(), self.deaths()
            return task.result()
        except TimeoutError:
            raise AssertionError(f"{self.deaths()} {self.states()}") from None
        finally:
            task.cancel()

    def states(self) -> dict[str, object]:
        """What every actor says of itself."""
        return {actor.context.actor_id: (actor.state, actor.waiting_for, actor.gauges()) for actor, _ in self.stage.living}

    def deaths(self) -> list[str]:
        """Actors that ended though nobody stopped them; the scheduler may."""
        return [
            f"{actor.context.actor_id}: {task.exception()!r}"
            for actor, task in self.stage.living
            if task.done() and (actor.kind != "scheduler" or task.exception() is not None)
        ]

    async def buried(self) -> Counter[tuple[str, int]]:
        """How often each message is in DEAD; its bytes and its reason are checked."""
        found: Counter[tuple[str, int]] = Counter()
        for event in await self.stage.facts("dead", EventRefused):
            assert isinstance(event, EventRefused)
            place = (event.stream, event.sequence)
            found[place] += 1
            assert place not in self.sent or self.sent[place].startswith(event.data), place
            assert event.reason
        return found

    async def audited(self) -> tuple[dict[str, Any], list[str]]:
        """The audit of the run; noise that came into PLAN after the end has no reader any more and is left out."""
        plan = [stored async for stored in self.stage.buses[0].read("plan", follow=False)]
        end = next(stored.sequence for stored in plan if isinstance(stored.event, RunEnded))
        late = tuple(f"undecodable: message {place[1]} of PLAN:" for place in self.sent if place[0] == "plan" and place[1] > end)
        problems = Problems()
        terms = audit(await gather(self.stage.buses[0], self.folder, problems), problems)
        return terms, [line for line in problems.lines() if not line.startswith(late)]
