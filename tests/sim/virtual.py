"""Virtual time: an event loop whose clock moves only when nothing else can happen, and the Platform on it."""

import asyncio
import contextvars
import heapq
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from actors.runtime.platform import Process
from tests.sim.lives import LIFE, Killed, never

EPOCH_NS = 1_700_000_000_000_000_000
MAX_CANCELLED = 256
"""Cancelled timers beyond which they are thrown out, if they are most of all timers."""


class StuckError(RuntimeError):
    """Every task waits, and no timer is set: nothing can ever happen again."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Threads and sockets have no place in it: work for an executor is done at once. Every step belongs to a life or to none."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self.around_work: Callable[[bool], None] = lambda _begins: None
        """Called before (True) and after each piece of work for an executor, in the life that asked for it."""

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        """One round: the steps that are ready; where there are none, the clock moves to the next timer."""
        scheduled, ready = self._scheduled, self._ready  # type: ignore[attr-defined]
        if self._timer_cancelled_count > MAX_CANCELLED and 2 * self._timer_cancelled_count > len(scheduled):  # type: ignore[attr-defined,has-type]
            scheduled[:] = [handle for handle in scheduled if not handle._cancelled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise StuckError("every task waits, and no timer is set")
            self._now_s = max(self._now_s, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now_s:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                life = handle._context.get(LIFE)
                if life is None or life.admits(handle):
                    handle._run()

    def resume(self, handles: list[asyncio.Handle]) -> None:
        """Take the steps that a stopped life has missed."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> "asyncio.Task[Any]":
        task = super().create_task(coro, name=name, context=context)
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.adopt(task)
        return task

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        self.around_work(True)
        try:
            future.set_result(func(*args))
        except Killed:
            return future
        except Exception as error:
            future.set_exception(error)
        finally:
            self.around_work(False)
        return future


class VirtualPlatform:
    """What an actor gets: the loop's time, ids and randomness from a seed. `on_fault` decides what a fault point does."""

    def __init__(self, name: str, seed: int, on_fault: Callable[[str], bool] | None = None) -> None:
        """`on_fault` says of a fault point whether the life ends there."""
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
        if self._on_fault is not None and self._on_fault(name):
            await never()


def play(main: Callable[[], Awaitable[None]]) -> VirtualLoop:
    """Run something to its end on a loop of its own; what is left of killed lives stays as it is."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return loop
