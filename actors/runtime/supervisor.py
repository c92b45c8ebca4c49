"""Keeps the processes of a run alive on one machine: ordered start, bounded restarts, reverse stop.

On hosts systemd does this, with the same intensity and period.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from actors.runtime.platform import Platform, Process
from asearch.errors import AsearchError

STOP_GRACE_S = 12.0
RESTART_DELAY_S = 0.5


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep alive. One that ends with status 0 is done; any other end is a failure.

    More than `max_restarts` failures in `period_s` seconds take the whole run down.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    env: dict[str, str] | None = None
    max_restarts: int = 5
    period_s: float = 60.0


class ChildFailedError(AsearchError):
    """A process failed too often."""


@dataclass
class _Child:
    spec: ChildSpec
    process: Process | None = None
    failures: deque[float] = field(default_factory=deque[float])
    n_restarts: int = 0
    done: bool = False


class Supervisor:
    """Starts children in order, restarts those that fail, stops them in reverse."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._children: list[_Child] = []
        self._stopping = False
        self._log = structlog.get_logger()

    @property
    def children(self) -> dict[str, tuple[int | None, int]]:
        """By name: the pid (None when it does not run) and how often it was restarted."""
        return {
            child.spec.name: (
                child.process.pid if child.process is not None and child.process.returncode is None else None,
                child.n_restarts,
            )
            for child in self._children
        }

    def is_done(self, name: str) -> bool:
        """Whether the child ended by itself, in order."""
        return any(child.done for child in self._children if child.spec.name == name)

    async def run(self, specs: Sequence[ChildSpec]) -> None:
        """Keep the children alive until cancelled. Raises ChildFailedError when one fails too often."""
        self._children = [_Child(spec) for spec in specs]
        try:
            async with asyncio.TaskGroup() as tasks:
                for child in self._children:
                    await self._start(child)
                    tasks.create_task(self._keep(child), name=f"keep {child.spec.name}")
        except* ChildFailedError as group:
            raise group.exceptions[0] from None
        finally:
            await asyncio.shield(self.stop())

    async def _start(self, child: _Child) -> None:
        spec = child.spec
        child.process = await self._platform.spawn(spec.argv, env=spec.env, log_path=spec.log_path)

    async def _keep(self, child: _Child) -> None:
        while child.process is not None:
            status = await child.process.wait()
            if self._stopping:
                return
            if status == 0:
                child.done = True
                return
            self._count_failure(child, status)
            await self._platform.sleep(RESTART_DELAY_S)
            child.n_restarts += 1
            await self._start(child)

    def _count_failure(self, child: _Child, status: int) -> None:
        now_s, spec = self._platform.monotonic(), child.spec
        child.failures.append(now_s)
        while child.failures and now_s - child.failures[0] > spec.period_s:
            child.failures.popleft()
        self._log.warning("process ended", name=spec.name, status=status, log=str(spec.log_path))
        if len(child.failures) > spec.max_restarts:
            raise ChildFailedError(
                f"{spec.name} failed {len(child.failures)} times in {spec.period_s:g} s (status {status}); "
                f"the end of {spec.log_path}:\n{tail(spec.log_path)}"
            )

    async def stop(self) -> None:
        """Stop every child, the last started first: SIGTERM, then SIGKILL after a grace."""
        self._stopping = True
        for child in reversed(self._children):
            if child.process is None or child.process.returncode is not None:
                continue
            child.process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await child.process.wait()
            if child.process.returncode is None:
                child.process.kill()
                await child.process.wait()


def tail(path: Path, n_lines: int = 15) -> str:
    """The last lines of a file, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-n_lines:])
    except OSError as error:
        return f"(cannot be read: {error})"
