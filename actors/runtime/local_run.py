"""A whole run on one machine: prepare, warm start, broker and actors, watch until it ends, stop everything."""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.platform import Platform, Process
from actors.runtime.prepare import Prepared, prepare
from actors.runtime.run_files import RUN_FILE, RunFile, write_run_file
from actors.runtime.supervisor import ChildSpec, Supervisor, tail
from actors.runtime.workspace import Process as ProcessIdentity
from actors.runtime.workspace import Workspace
from asearch.configuration.settings import Settings
from asearch.errors import AsearchError, ToolError
from schemas.events import RunEnded

CORPUS_TIMEOUT_S = 120.0
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
        begun = self.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.monotonic() - begun


@dataclass
class LocalRun:
    """What a run on this machine is made of."""

    workspace: Workspace
    run: str
    settings: Settings
    platform: Platform
    say: Say
    port: int = 0

    def __post_init__(self) -> None:
        self.run_dir = self.workspace.run_dir(self.run)
        self.phases = Phases(self.platform.monotonic)
        self.supervisor = Supervisor(self.platform)
        self.bus: Bus | None = None

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncGenerator[Bus]:
        """Prepare and start everything; on leaving, stop everything that was started, in reverse."""
        is_new = not (self.run_dir / RUN_FILE).is_file()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            with self.phases.phase("broker"):
                self.say("starting the broker")
                url, broker = await self.workspace.broker(self.platform, self.port)
                stack.push_async_callback(self.workspace.release, broker, self.run)
            self._write_placeholder(url)
            prepared = await prepare(self.settings, self.run_dir, self.platform, self.say, self.phases)
            corpus_url = await self._start_corpus(prepared, stack)
            content = self._run_file(url, corpus_url, prepared)
            write_run_file(self.run_dir, content)
            bus = await connect(url, self.run, "supervisor", self.platform)
            stack.push_async_callback(bus.close)
            if is_new:
                # The folder of an older run of this name was deleted by hand; what the broker holds of it goes too.
                await bus.delete_topology()
            await bus.ensure_topology()
            self.bus = bus
            yield bus

    async def supervise(self) -> None:
        """Keep the actors alive until cancelled."""
        await self.supervisor.run(self.children())

    async def until_ended(self) -> RunEnded:
        """Wait for the end of the run."""
        if self.bus is None:
            raise AsearchError("the run was not started")
        async with contextlib.aclosing(self.bus.read("plan", events=(RunEnded,))) as plan:
            async for stored in plan:
                if isinstance(stored.event, RunEnded):
                    return stored.event
        raise AsearchError("the plan ended before the run")

    def children(self) -> list[ChildSpec]:
        """The actor processes, in order of their start; the scheduler is last, so that it stops first."""
        engines = [("engine", f"engine-{number}") for number in range(self.settings.engine.count)]
        order = [("trainer", "trainer-0"), *engines, ("grader", "grader-0"), ("tool", "tool-0"), ("driver", "driver-0")]
        order += [("recorder", "recorder-0"), ("scheduler", "scheduler-0")]
        command = [sys.executable, "-m", "actors.cli.main", "actor", "--run", str(self.run_dir), "--die-with-parent"]
        logs = self.run_dir / "logs"
        return [ChildSpec(name=name, argv=[*command, "--id", name, kind], log_path=logs / f"{name}.log") for kind, name in order]

    async def _start_corpus(self, prepared: Prepared, stack: contextlib.AsyncExitStack) -> str:
        self.say("starting the corpus server")
        port_file, log_path = self.run_dir / "corpus.port", self.run_dir / "logs" / "corpus.log"
        port_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "asearch.corpus", "--corpus", str(prepared.corpus), "--port-file", str(port_file)]
        argv += ["--die-with-parent"]
        if prepared.pages is not None:
            argv += ["--pages", str(prepared.pages)]
        process = await self.platform.spawn(argv, log_path=log_path)
        stack.push_async_callback(_end, process)
        deadline_s = self.platform.monotonic() + CORPUS_TIMEOUT_S
        while not port_file.is_file():
            if process.returncode is not None or self.platform.monotonic() > deadline_s:
                raise ToolError(f"the corpus server did not start; the end of {log_path}:\n{tail(log_path)}")
            await self.platform.sleep(0.05)
        return f"http://127.0.0.1:{int(port_file.read_text())}"

    def _write_placeholder(self, url: str) -> None:
        """Make the run visible to `status` and `down` while it is still being prepared."""
        write_run_file(self.run_dir, self._run_file(url, "", None))

    def _run_file(self, url: str, corpus_url: str, prepared: Prepared | None) -> RunFile:
        me = ProcessIdentity.own()
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

    def _weights_dir(self) -> Path:
        """Shared memory where there is room for several versions, else the run's folder."""
        if self.settings.checkpoint.weights_dir is not None:
            return Path(self.settings.checkpoint.weights_dir)
        if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > MIN_SHARED_BYTES:
            return SHARED_MEMORY / f"asearch-{self.workspace.root.stat().st_ino}-{self.run}"
        return self.run_dir / "weights"


async def _end(process: Process, grace_s: float = 5.0) -> None:
    process.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
