"""A whole run in one process: every actor as it is shipped, on the in-memory bus, in virtual time, from one seed."""

import asyncio
import hashlib
import random
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
from actors.runtime.actor import Actor, Context
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import Faults, MemoryBroker, MemoryStream, Record
from actors.scheduler import Scheduler
from actors.tool import Tool
from actors.trainer import Trainer
from asearch.agents.packed import unpack_ids
from asearch.agents.settings import AgentSettings
from asearch.configuration.settings import CheckpointSettings, EvaluationSettings, RunSettings, Settings
from asearch.data.tasks import LoadedTask
from asearch.models.tokenizer import Tokenizer
from asearch.models.tokenizer_builder import build_tokenizer, save_tokenizer
from asearch.tools.base import ToolSet
from schemas.codec import decode_event
from schemas.events import Event, RunEnded, TokensGenerated
from tests.sim.parts import WORDS, ScriptedRank, ScriptedServer, ScriptedTool
from tests.sim.virtual import VirtualLoop, VirtualPlatform

RUN = "sim"
LIMIT_S = 4 * 3600.0
"""Virtual time after which a run that has not ended is taken for stuck."""
RESTART_DELAY_S = 0.5
SETTLE_S = 5.0
"""From the end of the run to the stop of its actors: one that was killed at the end is up again by then."""

SETTINGS = Settings(
    run=RunSettings(
        steps=4, groups_per_step=3, group_size=3, eta=2, max_groups_in_flight=12, episode_deadline_s=900.0, lease_s=15.0
    ),
    agent=AgentSettings(
        tool_text="compact",
        read_search=False,
        max_turns=10,
        max_new_tokens=40,
        max_context_tokens=1200,
        forced_tokens=24,
        page_chunk_chars=20,
    ),
    evaluation=EvaluationSettings(questions=4),
    checkpoint=CheckpointSettings(every_steps=2),
)


class SeededFaults(Faults):
    """Delays for everything; acks and acknowledgements that get lost and deliveries that come twice, at these rates."""

    def __init__(self, seed: int, rate: float) -> None:
        self._chance = random.Random(f"{seed}-faults")
        self._rate = rate
        self.n_played = 0

    def delay_s(self, action: str, subject: str) -> float:
        return self._chance.expovariate(1000)

    def _play(self) -> bool:
        happens = self._chance.random() < self._rate
        self.n_played += happens
        return happens

    def lose_acknowledgement(self, subject: str) -> bool:
        return self._play()

    def lose_ack(self, subject: str) -> bool:
        return self._play()

    def deliver_twice(self, subject: str) -> bool:
        return self._play()


@dataclass
class Living:
    """An actor that runs."""

    actor: Actor
    bus: MemoryBus
    task: "asyncio.Task[None]"


@dataclass
class Simulation:
    """One run. `crashes` says which actor is killed and started anew, after how many virtual seconds."""

    folder: Path
    seed: int = 0
    settings: Settings = SETTINGS
    fault_rate: float = 0.0
    p_outage: float = 0.0
    p_break: float = 0.02
    n_engines: int = 2
    n_drivers: int = 1
    crashes: tuple[tuple[str, float], ...] = ()
    alive: dict[str, Living] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def run(self) -> "Simulation":
        """Play it to the end in a loop of its own."""
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(self._play())
        return self

    async def _play(self) -> None:
        self._prepare()
        bus = MemoryBus(self.broker, RUN, "supervisor", VirtualPlatform("supervisor", self.seed))
        await bus.ensure_topology()
        for stream in self.broker.streams.values():
            self._note_appends(stream)
        names = ["trainer-0", *(f"engine-{n}" for n in range(self.n_engines)), "grader-0", "tool-0"]
        names += [*(f"driver-{n}" for n in range(self.n_drivers)), "recorder-0", "scheduler-0"]
        keepers = []
        for name in names:
            self._start(name)
            keepers.append(asyncio.create_task(self._keep(name)))
        killers = [asyncio.create_task(self._kill(name, after_s)) for name, after_s in self.crashes]
        async with asyncio.timeout(LIMIT_S):
            self.ended = await _end_of(bus)
        for killer in killers:
            killer.cancel()
        await asyncio.sleep(SETTLE_S)
        for name in reversed(names):
            self.alive[name].actor.stop()
            await self.alive[name].task
        await asyncio.gather(*keepers)
        self.problems = Problems()
        self.terms = audit(await gather(bus, self.folder, self.problems), self.problems)
        self.duration_s = asyncio.get_running_loop().time()

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = " ".join(f"{word} is a colour. Which colour is it? so seen" for word in WORDS)
        save_tokenizer(build_tokenizer([words], 400), self.folder / "model", 2000)
        self.tokenizer = Tokenizer.load(self.folder / "model")
        self.faults = SeededFaults(self.seed, self.fault_rate)
        self.broker = MemoryBroker(VirtualPlatform("broker", self.seed), self.faults)
        self.tasks = [
            LoadedTask(id=f"task-{n}", question=f"Which colour is it? {WORDS[n % 4]}", answers=[WORDS[n % 4]]) for n in range(24)
        ]
        self.rank = ScriptedRank()
        self.failures: list[BaseException] = []
        self._n_lives: dict[str, int] = {}

    # --- lives ---

    def _start(self, name: str) -> None:
        self._n_lives[name] = life = self._n_lives.get(name, 0) + 1
        platform = VirtualPlatform(f"{name}-{life}", self.seed)
        bus = MemoryBus(self.broker, RUN, name.partition("-")[0], platform)
        context = Context(RUN, self.folder, self.settings, bus, platform, name)
        actor = self._build(name.partition("-")[0], context)
        self.alive[name] = Living(actor, bus, asyncio.create_task(actor.run(), name=name))

    def _build(self, kind: str, context: Context) -> Actor:
        model = str(self.folder / "model")
        tools = ToolSet(*(ScriptedTool(name, self.seed, self.p_outage) for name in ("search", "access")))
        builders: dict[str, Callable[[], Actor]] = {
            "scheduler": lambda: Scheduler(context, self.tasks[:20], self.tasks[20:]),
            "driver": lambda: Driver(context, model),
            "engine": lambda: Engine(context, model, server=ScriptedServer(self.tokenizer, self.seed, self.p_break)),
            "tool": lambda: Tool(context, "", tools),
            "grader": lambda: Grader(context),
            "trainer": lambda: Trainer(context, model, self.folder / "weights", self.rank),
            "recorder": lambda: Recorder(context),
        }
        return builders[kind]()

    async def _keep(self, name: str) -> None:
        """Start an actor anew when it dies, as a supervisor does; an actor that ends by itself is done."""
        while True:
            living = self.alive[name]
            await asyncio.wait([living.task])
            error = None if living.task.cancelled() else living.task.exception()
            if error is None and not living.task.cancelled():
                return
            if error is not None and not living.bus.is_closed:
                self.failures.append(error)
            await asyncio.sleep(RESTART_DELAY_S)
            self._start(name)

    async def _kill(self, name: str, after_s: float) -> None:
        """End an actor as a kill does: nothing that it still wants to say reaches the broker."""
        await asyncio.sleep(after_s)
        living = self.alive[name]
        await living.bus.close()
        living.task.cancel()
        with suppress(asyncio.CancelledError, BaseExceptionGroup):
            await living.task

    # --- what came of it ---

    def _note_appends(self, stream: MemoryStream) -> None:
        """Log every fact as it is stored, whether or not it is purged later."""
        append = stream.append

        def noted(record: Record, now_s: float, expected: int | None, whole_stream: bool) -> tuple[int, bool]:
            sequence, known = append(record, now_s, expected, whole_stream)
            if not known:
                self.log.append(self._line(stream.row.name, decode_event(record.data), sequence))
            return sequence, known

        stream.append = noted  # type: ignore[method-assign]

    def _line(self, stream: str, event: Event, sequence: int) -> str:
        """Stream, sequence, kind, id, token ids. No clocks, no floats."""
        ids = unpack_ids(event.columns["ids"].data) if isinstance(event, TokensGenerated) else ""
        return f"{stream} {sequence} {type(event).__name__} {event.id} {ids}"

    def history(self, stream: str) -> list[bytes]:
        """What a stream holds."""
        return [record.data for record in self.broker.stream(RUN, stream).records.values()]

    @property
    def hash(self) -> str:
        """A name for the whole event log."""
        return hashlib.blake2b("\n".join(self.log).encode(), digest_size=16).hexdigest()

    def check(self) -> dict[str, Any]:
        """The audit agrees, and both identities hold; its terms."""
        assert self.failures == []
        assert self.problems.lines() == []
        for terms in (self.terms["accounting"], *self.terms["accounting_by_purpose"].values()):
            assert terms["requested"] == terms["graded"] + terms["dropped"] + terms["dead"]
            assert terms["graded"] == terms["counted"] + terms["discarded"] + terms["queued"]
            assert terms["in_flight"] == 0
        return self.terms["accounting"]


async def _end_of(bus: MemoryBus) -> RunEnded:
    async with aclosing(bus.read("plan", events=(RunEnded,))) as plan:
        async for stored in plan:
            assert isinstance(stored.event, RunEnded)
            return stored.event
    raise AssertionError("the plan ended before the run")
