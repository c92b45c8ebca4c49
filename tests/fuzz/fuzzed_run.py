"""A run of the shipped actors on a real broker, with scripted compute, while messages that nobody should send come in."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import aclosing
from itertools import islice
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
from actors.runtime.bus import Bus
from actors.scheduler import Scheduler
from actors.tool import Tool
from actors.trainer import Trainer
from asearch.configuration.settings import Settings
from asearch.data.tasks import LoadedTask
from asearch.errors import BusError
from asearch.models.tokenizer import Tokenizer
from asearch.tools.base import ToolSet
from schemas.events import EpisodeGraded, EpisodeRequested, EventRefused, RunEnded
from tests.actors.conftest import Stage
from tests.fuzz.generator import Generator, Noise
from tests.sim.faults import Troubles
from tests.sim.parts import WORDS, ScriptedRank, ScriptedServer, ScriptedTool
from tests.sim.scenario import SETTINGS

MAX_IN_FLIGHT = 64


class FuzzedRun:
    """Good episodes and noise in one run, which goes on until it is stopped."""

    def __init__(self, stage: Stage, model_dir: str, folder: Path, *, seed: int, step_ms: int) -> None:
        """`step_ms` is what an update takes: it sets how many good episodes a second are asked for."""
        self.stage, self.model_dir, self.folder = stage, model_dir, folder
        run = msgspec.structs.replace(SETTINGS.run, steps=1_000_000, lease_s=6.0, max_groups_in_flight=24, eta=4)
        self.settings: Settings = msgspec.structs.replace(SETTINGS, run=run)
        self._step_ms = step_ms
        # The trainer finishes its step and commits a checkpoint when it is stopped.
        stage.drain_s = 10.0 + step_ms / 1000
        self.generator = Generator(stage.run, seed)
        self.poison: dict[tuple[str, int], bytes] = {}
        """What was stored and is no event, by stream and sequence."""
        self.valid: set[tuple[str, int]] = set()
        """What was stored and is an event."""
        self.refused: list[tuple[int, str]] = []
        """Bytes and reason of what the broker or its client did not take."""
        self.fuzz_s = 0.0
        self._fuzzed: list[tuple[int, int]] = []
        """When fuzz came in: from and to, nanoseconds since the epoch."""
        self._quiet: list[tuple[int, int]] = []
        self._graded_ns: list[int] = []
        self._episodes: list[str] = []
        self._plan_read = 0
        self._n_sent = 0
        self._watcher: asyncio.Task[None] | None = None
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
        rank = ScriptedRank(troubles, self._step_ms)
        self._watcher = asyncio.create_task(self._watch_outcomes())
        await self._start(Engine(contexts["engine"], self.model_dir, server=ScriptedServer(tokenizer, troubles)), "starting")
        await self._start(Trainer(contexts["trainer"], self.model_dir, self.folder / "weights", rank))
        await self._start(Grader(contexts["grader"]))
        await self._start(Tool(contexts["tool"], "", tools))
        await self._start(Driver(contexts["driver"], self.model_dir))
        await self._start(Recorder(contexts["recorder"]))
        await self._start(Scheduler(contexts["scheduler"], tasks[:20], tasks[20:]))

    async def _start(self, actor: Actor, state: str = "ready") -> None:
        await self.stage.start(actor, state)

    async def fuzz(self, n: int, per_s: float, *, n_windows: int, quiet_s: float) -> None:
        """Send `n` messages at a steady rate, in windows, each after a quiet one. Raises AssertionError if an actor dies."""
        bus = await self.stage.connect("operator")
        messages = self.generator.messages(n)
        for _ in range(n_windows):
            begun_ns = time.time_ns()
            await self._unless_one_dies(asyncio.sleep(quiet_s))
            middle_ns = time.time_ns()
            await self._unless_one_dies(self._send(bus, islice(messages, -(-n // n_windows)), per_s))
            self._quiet.append((begun_ns, middle_ns))
            self._fuzzed.append((middle_ns, time.time_ns()))
        self.fuzz_s = sum(end - begin for begin, end in self._fuzzed) / 1e9

    async def _send(self, bus: Bus, messages: Iterable[Noise], per_s: float) -> None:
        begun_s, free = time.monotonic(), asyncio.Semaphore(MAX_IN_FLIGHT)
        async with asyncio.TaskGroup() as sending:
            for number, noise in enumerate(messages):
                if (ahead_s := number / per_s - (time.monotonic() - begun_s)) > 0:
                    await asyncio.sleep(ahead_s)
                if number % 200 == 0:
                    await self._learn_keys()
                await free.acquire()
                self._n_sent += 1
                task = sending.create_task(self._send_one(bus, noise, f"fuzz-{self._n_sent}"))
                task.add_done_callback(lambda _: free.release())

    async def _send_one(self, bus: Bus, noise: Noise, message_id: str) -> None:
        try:
            place = (noise.stream, await bus.append_bytes(noise.subject, noise.data, message_id))
        except BusError as error:
            self.refused.append((len(noise.data), str(error)))
            return
        if noise.is_event:
            self.valid.add(place)
        else:
            self.poison[place] = noise.data

    async def _learn_keys(self) -> None:
        bus = self.stage.buses[0]
        async with aclosing(
            bus.read("plan", events=(EpisodeRequested,), start_sequence=self._plan_read + 1, follow=False)
        ) as reader:
            async for stored in reader:
                self._plan_read = stored.sequence
                if stored.event is not None:
                    self._episodes = [*self._episodes[-19:], stored.key[-1]]
        self.generator.keys = {
            "plan": [*self._episodes, self.stage.run],
            "trace": self._episodes,
            "outcomes": self._episodes,
            "policy": ["policy"],
        }

    async def stop(self) -> None:
        """End the run: its scheduler stops, and nothing is in flight any more."""
        scheduler = next(actor for actor, _ in self.stage.living if actor.kind == "scheduler")
        await self.stage.end(scheduler)
        await self.stage.wait_for("plan", RunEnded)
        assert self._watcher is not None
        self._watcher.cancel()

    def good_per_s(self) -> tuple[float, float]:
        """Graded episodes per second while noise came in, and while none did, by the broker's clock."""
        return _rate(self._graded_ns, self._fuzzed), _rate(self._graded_ns, self._quiet)

    async def _watch_outcomes(self) -> None:
        async with aclosing(self.stage.buses[0].read("outcomes", events=(EpisodeGraded,))) as reader:
            async for stored in reader:
                if stored.event is not None:
                    self._graded_ns.append(stored.at_ns)

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
        """How often each message is in DEAD, its bytes and reason checked. What is no event in DEAD itself lies there once."""
        found: Counter[tuple[str, int]] = Counter()
        async with aclosing(self.stage.buses[0].read("dead", follow=False)) as reader:
            async for stored in reader:
                event = stored.event
                if isinstance(event, EventRefused):
                    place = (event.stream, event.sequence)
                    assert self.poison.get(place, b"?").startswith(event.data), f"{place}: {event.reason}"
                    assert event.reason, place
                elif event is None:
                    place = ("dead", stored.sequence)
                    assert self.poison[place] == stored.data
                else:
                    continue
                found[place] += 1
        return found

    async def all_buried(self, timeout_s: float) -> Counter[tuple[str, int]]:
        """What is in DEAD as soon as all poison is. Raises AssertionError at the timeout with what is missing."""
        deadline_s = time.monotonic() + timeout_s
        while missing := self.poison.keys() - (found := await self.buried()).keys():
            assert time.monotonic() < deadline_s, f"{len(missing)} are not in DEAD: {sorted(missing)[:20]}; {self.states()}"
            await asyncio.sleep(0.5)
        return found

    async def audited(self) -> tuple[dict[str, Any], list[str]]:
        """The audit of the run, after its trainer has committed and its recorder archived what there is."""
        for actor, _ in self.stage.living:
            if actor.kind in ("trainer", "recorder"):
                await self.stage.end(actor)
        problems = Problems()
        terms = audit(await gather(self.stage.buses[0], self.folder, problems), problems)
        return terms, problems.lines()


def _rate(at_ns: Iterable[int], windows: list[tuple[int, int]]) -> float:
    n = sum(any(begin <= each < end for begin, end in windows) for each in at_ns)
    return n / (sum(end - begin for begin, end in windows) / 1e9)
