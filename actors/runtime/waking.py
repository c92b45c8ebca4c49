"""Waking a task from a callback, and hearing of a background task that failed."""

import asyncio
import logging

log = logging.getLogger(__name__)


def report_failure(task: "asyncio.Task[None]") -> None:
    """A done-callback: log what ended a background task, unless it was cancelled."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task %s failed", task.get_name(), exc_info=error)


class Signal:
    """A condition that one task waits for and callbacks raise."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._is_set = False

    def set(self) -> None:
        """Wake the waiter, now or at its next wait."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for a `set` since the last wait."""
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_set = False
