"""Lives of actors on one loop: a step of a life is known by its context, so a life can be killed or stopped at any of them."""

import asyncio
import contextvars
import gc
import logging
import sys
import warnings
from collections.abc import Callable
from weakref import WeakSet

LIFE: contextvars.ContextVar["Life | None"] = contextvars.ContextVar("life", default=None)
"""The life that a step of the loop belongs to; None for the simulation itself and its broker."""

GRAVES: list[object] = []
"""What killed lives have left. It is kept: collecting a suspended coroutine would run its `finally` blocks."""


class Killed(BaseException):
    """Ends work that an executor does for a life, in the middle of it."""


class Life:
    """One life of an actor, from its start to its end. A step is one callback of the loop: what lies between two awaits."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.is_killed = False
        self.is_stopped = False
        self.n_steps = 0
        self.dies_at = 0
        """The step at which it is killed; 0: never."""
        self.cause = "await"
        self.on_death: Callable[[str], None] = lambda _cause: None
        self._tasks: WeakSet[asyncio.Task[object]] = WeakSet()
        self._held: list[asyncio.Handle] = []

    @property
    def kind(self) -> str:
        """The kind of actor."""
        return self.name.partition("-")[0]

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether a step may be taken now. One of a stopped life is kept for later, one of a killed life for ever."""
        if self.is_killed or self.is_stopped:
            self._held.append(handle)
            return False
        self.n_steps += 1
        if self.n_steps == self.dies_at:
            self._held.append(handle)
            self.on_death(self.cause)
            return False
        return True

    def adopt(self, task: "asyncio.Task[object]") -> None:
        """A task of this life was made."""
        self._tasks.add(task)

    def kill(self) -> None:
        """No step of it is ever taken again: no `finally`, no `except`, nothing is flushed."""
        self.is_killed = True
        GRAVES.append((self, tasks := list(self._tasks)))
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True

    def go_on(self) -> list[asyncio.Handle]:
        """SIGCONT: the steps that were due meanwhile, in order."""
        self.is_stopped = False
        held, self._held = self._held, []
        return held

    def context(self) -> contextvars.Context:
        """A context in which everything belongs to this life."""
        context = contextvars.copy_context()
        context.run(LIFE.set, self)
        return context


async def never() -> None:
    """Wait for ever: where a killed life stands still."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    GRAVES.append(future)
    await future


def forget_the_dead() -> None:
    """Collect what killed lives have left, once nobody looks any more. Their `finally` blocks only fail."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            GRAVES.clear()
            gc.collect()
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook
