"""Virtual time: an event loop whose clock moves only when nothing else can happen, and the Platform on it."""

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from actors.runtime.platform import Process

EPOCH_NS = 1_700_000_000_000_000_000


class StuckError(RuntimeError):
    """Every task waits, and no timer is set: nothing can ever happen again."""


class _Clock(selectors.SelectSelector):
    """A selector that never waits: where a real one would sleep, it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("every task waits, and no timer is set")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Threads and sockets have no place in it: work for an executor is done at once."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now_s

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class VirtualPlatform:
    """What an actor gets: the loop's time, ids and randomness from a seed. `on_fault` decides what a fault point does."""

    def __init__(self, name: str, seed: int, on_fault: Callable[[str], Awaitable[None]] | None = None) -> None:
        self.random = random.Random(f"{seed}-{name}")
        self._name = name
        self._n_ids = 0
        self._on_fault = on_fault

    def now_ns(self) -> int:
        """The wall clock."""
        return EPOCH_NS + int(self.monotonic() * 1e9)

    def monotonic(self) -> float:
        """The loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, delay_s: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(delay_s)

    def new_id(self) -> str:
        """A fresh id."""
        self._n_ids += 1
        return f"{self._name.replace('-', '')}{self._n_ids}"

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """There are no processes here."""
        raise RuntimeError(f"a simulation starts no process: {' '.join(argv)}")

    async def fault(self, name: str) -> None:
        """Play the fault of this point, if any."""
        if self._on_fault is not None:
            await self._on_fault(name)
