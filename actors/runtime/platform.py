"""What an actor gets from outside itself: time, sleep, ids, randomness, processes and named fault points."""

import asyncio
import os
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from asearch import parent


class Process(Protocol):
    """A running child process."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """The exit status, None while the process runs; a negative value is the signal that ended it."""
        ...

    async def wait(self) -> int:
        """Wait for the end and return the exit status."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM; nothing happens if the process has ended."""
        ...

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if the process has ended."""
        ...


class Platform(Protocol):
    """Time, sleep, ids, randomness, processes. Tests and the simulation inject their own."""

    random: random.Random

    def now_ns(self) -> int:
        """The wall clock in nanoseconds since the epoch; for reading, never for decisions."""
        ...

    def monotonic(self) -> float:
        """A clock in seconds that never goes back; for deadlines and durations."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait."""
        ...

    def new_id(self) -> str:
        """A fresh id of letters and digits, unique among all actors."""
        ...

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start a process in a session of its own. `env` None inherits; stdout and stderr are appended to `log_path`."""
        ...

    async def fault(self, name: str) -> None:
        """A named point at which a test may delay, raise or kill. Does nothing in production."""
        ...


class SystemProcess:
    """A child process of the operating system."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, None while the process runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM; nothing happens if the process has ended."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if the process has ended."""
        if self._process.returncode is None:
            self._process.kill()


class SystemPlatform:
    """The real one. `seed` fixes `random` alone."""

    def __init__(self, seed: int | None = None) -> None:
        self.random = random.Random(seed)

    def now_ns(self) -> int:
        """The wall clock in nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """A clock in seconds that never goes back."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Wait."""
        await asyncio.sleep(delay_s)

    def new_id(self) -> str:
        """32 hexadecimal digits."""
        return uuid.uuid4().hex

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> SystemProcess:
        """Start a process in a session of its own, its output appended to `log_path` or thrown away.

        It is told our pid, so that `asearch.parent` knows an orphan, however late it gets to ask.
        """
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log_path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(os.environ if env is None else env) | {parent.VARIABLE: str(os.getpid())},
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        finally:
            os.close(output)
        return SystemProcess(process)

    async def fault(self, name: str) -> None:
        """No fault."""
