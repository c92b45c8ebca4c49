"""A whole run in one process: every actor as it is shipped, on the in-memory bus, in virtual time, from one scenario."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.cli.auditing.evidence import gather
from actors.cli.auditing.findings import audit
from actors.cli.auditing.problems import Problems
from actors.driver import Driver
from actors.engine import Engine
from actors.grader import Grader
from actors.recorder import Recorder
from actors.runtime.actor import Actor, Context, drain_timeout_s
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.scheduler import Scheduler
from actors.tool import Tool
from actors.trainer import Trainer
from asearch.data.tasks import LoadedTask
from asearch.errors import BusError
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer, save_tokenizer
from asearch.tools.base import ToolSet
from schemas.events import RunEnded
from tests.sim.checks import findings
from tests.sim.faults import Troubles
from tests.sim.journal import Journal
from tests.sim.lives import Life, forget_the_dead
from tests.sim.parts import WORDS, ScriptedRank, ScriptedServer, ScriptedTool
from tests.sim.playing import Player
from tests.sim.scenario import Scenario
from tests.sim.virtual import VirtualLoop, VirtualPlatform, play

RUN = "sim"
LIMIT_S = 2400.0
"""Virtual time after which a run that has not ended is taken for stuck."""
RESTART_DELAY_S = 0.5
SETTLE_S = 5.0
"""From the end of the run to the stop of its actors: one that was killed at the end is up again by then."""
GRACE_S = 5.0
STAGES = (("scheduler",), ("engine", "grader", "tool", "driver", "recorder"), ("trainer",))
"""In which order a supervisor stops actors."""


@dataclass(eq=False)
class Living:
    """A life and what lives it. `ended` is resolved with what it ended of; None: by itself.

    `gone` is resolved when a supervisor takes it for dead; that may be before it is.
    """

    life: Life
    bus: MemoryBus
    ended: "asyncio.Future[BaseException | str | None]"
    gone: "asyncio.Future[None]"
    actor: Actor | None = None


@dataclass
class Simulation:
    """One run."""

    folder: Path
    scenario: Scenario = field(default_factory=Scenario)
    alive: dict[str, Living] = field(default_factory=dict[str, Living])
    deaths: list[tuple[str, BaseException]] = field(default_factory=list[tuple[str, BaseException]])
    """Lives that ended of an error."""
    complaints: list[str] = field(default_factory=list[str])
    """Errors that were met in the background."""
    points: Counter[str] = field(default_factory=Counter[str])
    killed_at: Counter[str] = field(default_factory=Counter[str])

    def run(self) -> "Simulation":
        """Play it to the end in a loop of its own, and look for what is wrong. What the lives have left is given up."""
        try:
            play(self._play)
            self.findings = findings(self)
        finally:
            self._give_up()
        return self

    def _give_up(self) -> None:
        self.alive.clear()
        for name in ("broker", "player", "_superseded"):
            vars(self).pop(name, None)
        forget_the_dead()

    async def _play(self) -> None:
        self._prepare()
        bus = MemoryBus(self.broker, RUN, "supervisor", VirtualPlatform("supervisor", self.scenario.seed))
        await bus.ensure_topology()
        self.journal = Journal({name: stream for (_, name), stream in self.broker.streams.items()})
        self._keepers = [asyncio.create_task(self._keep(name), name=f"keep {name}") for name in self.scenario.names]
        self._n_engines = self.scenario.n_engines
        player = asyncio.create_task(self.player.play(self.scenario.faults), name="faults")
        stopper = asyncio.create_task(self._stop_by_user(bus), name="user")
        try:
            async with asyncio.timeout(LIMIT_S):
                self.ended = await _end_of(bus)
        except TimeoutError:
            raise AssertionError(f"the run has not ended after {LIMIT_S:g} s; {self.where()}") from None
        self.duration_s = asyncio.get_running_loop().time()
        for task in (player, stopper):
            task.cancel()
        self.troubles.is_over = True
        self.player.calm()
        await asyncio.sleep(SETTLE_S)
        await self._stop_all(self._keepers)
        self.problems = Problems()
        self.terms = audit(await gather(bus, self.folder, self.problems), self.problems)

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = " ".join(f"{word} is a colour. Which colour is it? so seen" for word in WORDS)
        save_tokenizer(build_tokenizer([words], 400), self.folder / "model", 2000)
        self.tokenizer = Tokenizer.load(self.folder / "model")
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.troubles = Troubles(self.scenario.seed, self.scenario.rates, loop.time)
        self.broker = MemoryBroker(VirtualPlatform("broker", self.scenario.seed), self.troubles)
        self.player = Player(self, loop)
        loop.set_exception_handler(self._on_loop_error)
        questions = self.scenario.settings.evaluation.questions
        tasks = [
            LoadedTask(id=f"task-{n}", question=f"Which colour is it? {WORDS[n % 4]}", answers=[WORDS[n % 4]])
            for n in range(20 + questions)
        ]
        self.train, self.held_out = tasks[:20], tasks[20:]
        self._n_lives: Counter[str] = Counter()
        self._stopping = False
        self._superseded: list[Living] = []

    # --- lives ---

    def start(self, name: str) -> Living:
        """Begin the next life of an actor."""
        self._n_lives[name] += 1
        life = Life(name, self._n_lives[name])
        platform = VirtualPlatform(f"{name}-{life.number}", self.scenario.seed, lambda point: self.player.passes(life, point))
        bus = MemoryBus(self.broker, RUN, name, platform)
        loop = asyncio.get_running_loop()
        living = Living(life, bus, loop.create_future(), loop.create_future())
        living.ended.add_done_callback(lambda _: living.gone.done() or living.gone.set_result(None))
        life.on_death = lambda cause: self.kill(living, cause)
        self.alive[name] = living
        task = loop.create_task(self._live(living, platform), name=name, context=life.context())
        task.add_done_callback(lambda done: self._end(living, done))
        self.player.born(life)
        return living

    async def _live(self, living: Living, platform: VirtualPlatform) -> None:
        try:
            await living.bus.open()
            context = Context(RUN, self.folder, self.scenario.settings, living.bus, platform, living.life.name)
            living.actor = self._build(living.life.kind, context)
            await living.actor.run()
        finally:
            await living.bus.close()

    def _build(self, kind: str, context: Context) -> Actor:
        model = str(self.folder / "model")
        troubles = self.troubles
        builders: dict[str, Callable[[], Actor]] = {
            "scheduler": lambda: Scheduler(context, self.train, self.held_out),
            "driver": lambda: Driver(context, model),
            "engine": lambda: Engine(context, model, server=ScriptedServer(self.tokenizer, troubles)),
            "tool": lambda: Tool(context, "", ToolSet(*(ScriptedTool(name, troubles) for name in ("search", "access")))),
            "grader": lambda: Grader(context),
            "trainer": lambda: Trainer(context, model, self.folder / "weights", ScriptedRank(troubles, self.scenario.step_ms)),
            "recorder": lambda: Recorder(context),
        }
        return builders[kind]()

    def _end(self, living: Living, task: "asyncio.Task[None]") -> None:
        """The process ends, and with it whatever it still had under way."""
        if living.ended.done():
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        living.life.kill()
        living.bus.cut()
        if error is not None:
            self.deaths.append((living.life.name, error))
        living.ended.set_result(error)

    def kill(self, living: Living, cause: str) -> None:
        """SIGKILL."""
        if living.life.is_killed:
            return
        self.troubles.happened(cause.partition(" ")[0], f"{living.life.name}.{living.life.number} {cause.partition(' ')[2]}")
        living.life.kill()
        living.bus.cut()
        living.ended.set_result(cause)

    async def _keep(self, name: str) -> None:
        """Start an actor, and anew when it dies, as a supervisor does; an actor that ends by itself is done."""
        living = self.start(name)
        while True:
            await living.gone
            if self._stopping or (living.ended.done() and living.ended.result() is None):
                return
            await asyncio.sleep(RESTART_DELAY_S)
            living = self.start(name)

    def join(self) -> None:
        """One more engine, under a name that none had."""
        name = f"engine-{self._n_engines}"
        self._n_engines += 1
        self._keepers.append(asyncio.create_task(self._keep(name), name=f"keep {name}"))

    def supersede(self, living: Living) -> None:
        """A supervisor takes it for dead, although it is not."""
        self._superseded.append(living)
        living.gone.set_result(None)

    async def _stop_by_user(self, bus: MemoryBus) -> None:
        """The user stops the run: the scheduler ends it."""
        if self.scenario.stop_after_ms:
            await asyncio.sleep(self.scenario.stop_after_ms / 1000)
            while True:
                if (actor := self.alive["scheduler-0"].actor) is not None:
                    actor.stop()
                await asyncio.sleep(1.0)

    async def _stop_all(self, keepers: "list[asyncio.Task[None]]") -> None:
        self._stopping = True
        for living in self._superseded:
            if not living.ended.done():
                living.life.kill()
                living.bus.cut()
        for stage in STAGES:
            several = [living for living in self.alive.values() if living.life.kind in stage]
            for living in several:
                if living.actor is not None:
                    living.actor.stop()
            for living in several:
                await self._wait_or_kill(living)
        for keeper in keepers:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper

    async def _wait_or_kill(self, living: Living) -> None:
        limit_s = drain_timeout_s(living.life.kind) + GRACE_S
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(living.ended)
        except TimeoutError:
            self.deaths.append((living.life.name, TimeoutError(f"it did not stop within {limit_s:g} s")))
            self.kill(living, "kill")

    def note(self, text: str) -> None:
        """A line of an actor's log, for the trace."""
        if hasattr(self, "troubles"):
            self.troubles.note(text)

    def complain(self, text: str, error: object) -> None:
        """An actor met an error that nobody expects."""
        caught = sys.exc_info()[1] if error is True else error
        if isinstance(caught, BusError):
            self.note(f"{text}: {caught}")
        else:
            self.complaints.append(f"{text}: {type(caught).__name__}: {caught}")

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complain(f"loop: {context.get('message')} {context.get('task') or context.get('future') or ''}", error)

    def where(self) -> str:
        """Who is in which state, for a message."""
        states = [f"{name}: {living.actor.state if living.actor else 'not up'}" for name, living in self.alive.items()]
        return ", ".join(states)

    # --- what came of it ---

    @property
    def log(self) -> list[str]:
        """Every fact as it was stored."""
        return self.journal.lines

    @property
    def hash(self) -> str:
        """A name for the whole event log."""
        return self.journal.hash

    def check(self) -> dict[str, Any]:
        """Nothing is wrong; the accounts."""
        assert self.findings == []
        return self.terms["accounting"]


async def _end_of(bus: MemoryBus) -> RunEnded:
    async with aclosing(bus.read("plan", events=(RunEnded,))) as plan:
        async for stored in plan:
            assert isinstance(stored.event, RunEnded)
            return stored.event
    raise AssertionError("the plan ended before the run")
