"""A whole run on one machine: prepare, warm start, broker and actors, watch until it ends, stop everything."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.runtime.actor import drain_timeout_s
from actors.runtime.broker import free_port
from actors.runtime.broker_watch import BrokerWatch
from actors.runtime.bus import Bus
from actors.runtime.elastic import ElasticEngines
from actors.runtime.jetstream import connect
from actors.runtime.naked import naked
from actors.runtime.otlp import is_asked_for
from actors.runtime.platform import Platform
from actors.runtime.prepare import Prepared, prepare
from actors.runtime.roster import actors_of
from actors.runtime.run_files import RUN_FILE, RunFile, write_run_file
from actors.runtime.supervisor import MAX_RESTARTS, PERIOD_S, ChildSpec, Supervisor
from actors.runtime.transfer.transfer import pulled_folder
from actors.runtime.workspace import Process, Workspace
from asearch.configuration.settings import Settings
from asearch.engines.sglang import launch as sglang
from asearch.errors import AsearchError, ConfigError
from schemas.events import RunEnded

GRACE_S = 5.0
"""What an actor may take beside its drain, from SIGTERM to its end."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
MIN_SHARED_BYTES = 1 << 30
Say = Callable[[str], None]


@dataclass
class Phases:
    """Wall-clock seconds of each phase, in order."""

    monotonic: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextlib.contextmanager
    def phase(self, name: str):
        """Measure a phase."""
        begun_s = self.monotonic()
        try:
            yield
        finally:
            self.since(name, begun_s)

    def since(self, name: str, begun_s: float) -> float:
        """Count the time since `begun_s` to a phase; returns the present."""
        now_s = self.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now_s - begun_s
        return now_s


@dataclass
class LocalRun:
    """What a run on this machine is made of."""

    workspace: Workspace
    run: str
    settings: Settings
    platform: Platform
    say: Say
    port: int = 0
    max_restarts: int = MAX_RESTARTS
    """Failures of one process, the broker's included, in PERIOD_S seconds; more take the run down."""

    def __post_init__(self) -> None:
        self.run_dir = self.workspace.run_dir(self.run)
        self.phases = Phases(self.platform.monotonic)
        self.supervisor = Supervisor(self.platform)
        self.bus: Bus | None = None

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncGenerator[Bus]:
        """Prepare and start everything; on leaving, stop everything that was started, in reverse."""
        # Actors would refuse an environment that asks for traces wrongly, or lacks SGLang; better one clear error before all.
        is_asked_for(os.environ)
        if self.settings.engine.kind == "sglang" and not self.settings.engine.urls:
            sglang.interpreter(self.settings.engine)
        is_new = not (self.run_dir / RUN_FILE).is_file()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            with self.phases.phase("broker"):
                self.say("starting the broker")
                url, broker = await self.workspace.broker(self.platform, self.port, self.run)
                stack.push_async_callback(self.workspace.release, broker, self.run)
                bus = await self._connect(url, is_new, stack)
            # From here on `status`, `down` and a second `up` see the run.
            write_run_file(self.run_dir, self._run_file(url, "", None))
            self._make_weights_dir(stack)
            prepared = await prepare(self.settings, self.run_dir, self.platform, self.say, self.phases)
            with self.phases.phase("corpus"):
                corpus_url = await self._start_corpus(prepared, stack)
            write_run_file(self.run_dir, self._run_file(url, corpus_url, prepared))
            self.bus = bus
            yield bus

    async def _connect(self, url: str, is_new: bool, stack: contextlib.AsyncExitStack) -> Bus:
        bus = await connect(url, self.run, "supervisor", self.platform)
        stack.push_async_callback(bus.close)
        if is_new:
            # The folder of an older run of this name was deleted by hand; what the broker holds of it goes too.
            await bus.delete_topology()
        await self.workspace.ensure_streams(bus)
        return bus

    async def supervise(self) -> None:
        """Keep broker, corpus server and actors alive until cancelled; a cancellation while they stop kills the actors.

        Raises AsearchError when one of them fails too often.
        """
        with naked(AsearchError):
            async with contextlib.AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                engines = ElasticEngines(self.run, self.run_dir, self.settings, self.supervisor, self._added_engine)
                if self.bus is not None:
                    await engines.serve(self.bus)
                broker = BrokerWatch(self.workspace, self.platform, self.say, self._settle_broker, self.max_restarts)
                watch = tasks.create_task(broker.run(), name="watch broker")
                stack.callback(watch.cancel)
                await self.supervisor.run(self.children(engines.membership.engines))

    async def _settle_broker(self) -> None:
        if self.bus is not None:
            await self.workspace.ensure_streams(self.bus)

    async def until_ended(self) -> RunEnded:
        """Wait for the end of the run."""
        if self.bus is None:
            raise AsearchError("the run was not started")
        async with contextlib.aclosing(self.bus.read("plan", events=(RunEnded,))) as plan:
            async for stored in plan:
                if isinstance(stored.event, RunEnded):
                    return stored.event
        raise AsearchError("the plan ended before the run")

    def children(self, engines: Sequence[str] | None = None) -> list[ChildSpec]:
        """The actor processes, in order of their start; `engines` None: as many as a run begins with.

        The scheduler stops first, so that nothing is left in flight, and alone may end by itself; the trainer stops last.
        """
        return [self._child(kind, name) for kind, name in actors_of(self.settings, engines)]

    def _child(self, kind: str, name: str) -> ChildSpec:
        command = [sys.executable, "-m", "actors.cli.main", "actor", "--run", str(self.run_dir), "--die-with-parent"]
        return ChildSpec(
            name=name,
            argv=[*command, "--id", name, kind],
            log_path=self.run_dir / "logs" / f"{name}.log",
            max_restarts=self.max_restarts,
            period_s=self._period_s(kind),
            may_end=kind == "scheduler",
            may_fail=kind == "viewer",
            stage={"scheduler": 0, "trainer": 2, "viewer": 3}.get(kind, 1),
            grace_s=drain_timeout_s(kind) + GRACE_S,
            keeps=pulled_folder(self._weights_dir(), name) if kind == "engine" else None,
        )

    def _period_s(self, kind: str) -> float:
        """Over which failures are counted: an engine whose SGLang server never comes up fails only after minutes each time."""
        engine = self.settings.engine
        is_slow = kind == "engine" and engine.kind == "sglang"
        return PERIOD_S + (MAX_RESTARTS * engine.start_limit_s if is_slow else 0.0)

    def _added_engine(self, name: str) -> ChildSpec:
        """One that was added to a run that did without it, which it goes on doing if the engine fails too often."""
        return dataclasses.replace(self._child("engine", name), may_fail=True)

    async def _start_corpus(self, prepared: Prepared, stack: contextlib.AsyncExitStack) -> str:
        """Start the corpus server on a port that it keeps when it is started again."""
        self.say("starting the corpus server")
        port, port_file = free_port(), self.run_dir / "corpus.port"
        argv = [sys.executable, "-m", "asearch.corpus", "--corpus", str(prepared.corpus), "--port", str(port)]
        argv += ["--port-file", str(port_file), "--die-with-parent"]
        if prepared.pages is not None:
            argv += ["--pages", str(prepared.pages)]
        stack.push_async_callback(self.supervisor.stop)
        log_path = self.run_dir / "logs" / "corpus.log"
        spec = ChildSpec(
            name="corpus",
            argv=argv,
            log_path=log_path,
            max_restarts=self.max_restarts,
            stage=3,
            grace_s=GRACE_S,
            ready_file=port_file,
        )
        await self.supervisor.start(spec)
        return f"http://127.0.0.1:{port}"

    def _run_file(self, url: str, corpus_url: str, prepared: Prepared | None) -> RunFile:
        me = Process.own()
        return RunFile(
            run=self.run,
            settings=self.settings,
            broker_url=url,
            corpus_url=corpus_url,
            model_dir=str(prepared.model_dir) if prepared else "",
            train_tasks=str(prepared.train_tasks) if prepared else "",
            eval_tasks=str(prepared.eval_tasks) if prepared else "",
            weights_dir=str(self._weights_dir()),
            supervisor_pid=me.pid,
            supervisor_started=me.started,
        )

    def _make_weights_dir(self, stack: contextlib.AsyncExitStack) -> None:
        """Make the folder, for this user alone, and delete it on leaving: a killed trainer leaves it in shared memory."""
        folder = self._weights_dir()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.settings.checkpoint.weights_dir is not None:
            return
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise ConfigError(f"{folder} is not ours: set checkpoint.weights_dir to a folder of your own")
        folder.chmod(0o700)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

    def _weights_dir(self) -> Path:
        """Shared memory where there is room for several versions, else the run's folder."""
        if self.settings.checkpoint.weights_dir is not None:
            return Path(self.settings.checkpoint.weights_dir)
        if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > MIN_SHARED_BYTES:
            return SHARED_MEMORY / f"asearch-{self.workspace.root.stat().st_ino}-{self.run}"
        return self.run_dir / "weights"
