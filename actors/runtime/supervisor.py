"""Keeps the processes of a run alive on one machine: ordered start, bounded restarts, stop in stages.

On hosts systemd does this, with the same intensity and period.
"""

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import structlog

from actors.runtime.naked import naked
from actors.runtime.platform import Platform, Process
from asearch.errors import AsearchError

STOP_GRACE_S = 12.0
RESTART_DELAY_S = 0.5
MAX_RESTARTS, PERIOD_S = 5, 60.0
"""More failures than this in the period take the whole run down."""
_POLL_S = 0.05


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep alive. One that `may_end` is done when it ends with status 0; every other end is a failure.

    More than `max_restarts` failures in `period_s` seconds take the whole run down. Children of a lower `stage` stop first,
    those of one stage together; one that runs `grace_s` after SIGTERM is killed. A child with a `ready_file` has started when
    it has written that file. One that `may_fail` is given up after too many failures, and the run goes on without it.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    env: dict[str, str] | None = None
    max_restarts: int = MAX_RESTARTS
    period_s: float = PERIOD_S
    may_end: bool = False
    may_fail: bool = False
    stage: int = 0
    grace_s: float = STOP_GRACE_S
    ready_file: Path | None = None
    ready_timeout_s: float = 120.0
    keeps: Path | None = None
    """A folder of this child alone, which is deleted when it is removed for good."""


class ChildFailedError(AsearchError):
    """A process failed too often."""


class Intensity:
    """Counts failures within a sliding window."""

    def __init__(self, max_restarts: int = MAX_RESTARTS, period_s: float = PERIOD_S) -> None:
        self.max_restarts = max_restarts
        self.period_s = period_s
        self._failures: deque[float] = deque()

    @property
    def n_failures(self) -> int:
        """Failures in the window as of the newest one."""
        return len(self._failures)

    def exceeded(self, now_s: float) -> bool:
        """Count a failure; whether there are now too many."""
        self._failures.append(now_s)
        while now_s - self._failures[0] > self.period_s:
            self._failures.popleft()
        return len(self._failures) > self.max_restarts


@dataclass
class _Child:
    spec: ChildSpec
    intensity: Intensity
    process: Process | None = None
    n_restarts: int = 0
    done: bool = False
    is_removed: bool = False

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Supervisor:
    """Starts children in order, restarts those that fail, stops them in stages."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._children: list[_Child] = []
        self._stopping = False
        self._killed = False
        self._tasks: asyncio.TaskGroup | None = None
        self._log = structlog.get_logger()

    @property
    def children(self) -> dict[str, tuple[int | None, int]]:
        """By name: the pid (None when it does not run) and how often it was restarted."""
        return {
            child.spec.name: (child.process.pid if child.process is not None and child.runs else None, child.n_restarts)
            for child in self._children
        }

    def is_done(self, name: str) -> bool:
        """Whether the child ended by itself, in order."""
        return any(child.done for child in self._children if child.spec.name == name)

    async def start(self, spec: ChildSpec) -> None:
        """Start one child before the others and wait until it is ready; `run` keeps it alive, `stop` ends it.

        Raises ChildFailedError if it ends or is not ready in time.
        """
        await self._start_first(self._take(spec))

    async def _start_first(self, child: _Child) -> None:
        spec = child.spec
        await self._start(child)
        deadline_s = self._platform.monotonic() + spec.ready_timeout_s
        while spec.ready_file is not None and not spec.ready_file.is_file():
            if not child.runs or self._platform.monotonic() > deadline_s:
                raise ChildFailedError(f"{spec.name} did not start; the end of {spec.log_path}:\n{tail(spec.log_path)}")
            await self._platform.sleep(_POLL_S)

    async def run(self, specs: Sequence[ChildSpec]) -> None:
        """Keep these children, and those already started, alive until cancelled; on leaving stop them all.

        A cancellation while they stop kills them. Raises ChildFailedError when one fails too often.
        """
        try:
            with naked(ChildFailedError):
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    for child in self._children:
                        tasks.create_task(self._keep(child), name=f"keep {child.spec.name}")
                    # All of them known from the beginning: one may be removed, others added, while the first ones start.
                    for child in [self._take(spec) for spec in specs]:
                        if not child.is_removed:
                            await self._start_first(child)
                            tasks.create_task(self._keep(child), name=f"keep {child.spec.name}")
        finally:
            self._tasks = None
            await self._stop_for_certain()

    @property
    def is_running(self) -> bool:
        """Whether children are kept alive, and may be added."""
        return self._tasks is not None and not self._stopping

    def add(self, spec: ChildSpec) -> None:
        """Start one more child and keep it alive too, while `run` is under way."""
        if self._tasks is None:
            raise RuntimeError("the supervisor does not run")
        self._tasks.create_task(self._start_and_keep(self._take(spec)), name=f"keep {spec.name}")

    def remove(self, name: str, *, now: bool = False) -> None:
        """End a child and do not start it again: SIGTERM, and SIGKILL after its grace, or `now`."""
        for child in self._children:
            if child.spec.name == name and not child.is_removed:
                child.is_removed = True
                if self._tasks is not None:
                    self._tasks.create_task(self._remove(child, 0.0 if now else child.spec.grace_s), name=f"remove {name}")

    def _take(self, spec: ChildSpec) -> _Child:
        child = _Child(spec, Intensity(spec.max_restarts, spec.period_s))
        self._children.append(child)
        return child

    async def _start_and_keep(self, child: _Child) -> None:
        await self._start(child)
        await self._keep(child)

    async def _remove(self, child: _Child, grace_s: float) -> None:
        if child.process is not None:
            if not grace_s:
                child.process.kill()
            await _end(child.process, grace_s)
        if child.spec.keeps is not None:
            await asyncio.to_thread(shutil.rmtree, child.spec.keeps, ignore_errors=True)
        self._children = [each for each in self._children if each is not child or each.runs]

    async def _stop_for_certain(self) -> None:
        stopping = asyncio.create_task(self.stop(), name="stop")
        cancelled: asyncio.CancelledError | None = None
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError as error:
                cancelled = error
                self.kill()
        if cancelled is not None:
            raise cancelled

    async def _start(self, child: _Child) -> None:
        spec = child.spec
        if spec.ready_file is not None:
            spec.ready_file.unlink(missing_ok=True)
        spawning = asyncio.ensure_future(self._platform.spawn(spec.argv, env=spec.env, log_path=spec.log_path))
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # The process may exist by now: whoever stops the children must know it.
            child.process = await spawning
            raise
        child.process = process
        if self._killed or child.is_removed:
            process.kill()

    async def _keep(self, child: _Child) -> None:
        while child.process is not None:
            status = await child.process.wait()
            if self._stopping or child.is_removed:
                return
            if status == 0 and child.spec.may_end:
                child.done = True
                return
            if self._exceeds(child, status):
                return
            await self._platform.sleep(RESTART_DELAY_S)
            if child.is_removed:
                return
            child.n_restarts += 1
            await self._start(child)

    def _exceeds(self, child: _Child, status: int) -> bool:
        """Count a failure; whether the child is given up. Raises ChildFailedError if the run cannot do without it."""
        spec = child.spec
        self._log.warning("process ended", name=spec.name, status=status, log=str(spec.log_path))
        if not child.intensity.exceeded(self._platform.monotonic()):
            return False
        message = (
            f"{spec.name} failed {child.intensity.n_failures} times in {spec.period_s:g} s (status {status}); "
            f"the end of {spec.log_path}:\n{tail(spec.log_path)}"
        )
        if not spec.may_fail:
            raise ChildFailedError(message)
        self._log.error("the run goes on without it", name=spec.name, why=message)
        return True

    def kill(self) -> None:
        """SIGKILL every child now; `stop`, which may be under way, waits for their ends."""
        self._stopping = self._killed = True
        for child in self._children:
            if child.process is not None:
                child.process.kill()

    async def stop(self) -> None:
        """Stop every child, stage by stage: SIGTERM, then SIGKILL after its grace."""
        self._stopping = True
        ordered = sorted(self._children, key=lambda child: child.spec.stage)
        for _, stage in groupby(ordered, key=lambda child: child.spec.stage):
            await asyncio.gather(*(_end(child.process, child.spec.grace_s) for child in stage if child.process is not None))


async def _end(process: Process, grace_s: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def tail(path: Path, n_lines: int = 15) -> str:
    """The last lines of a file, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-n_lines:])
    except OSError as error:
        return f"(cannot be read: {error})"
