"""The thread that owns the model: takes requests and commands from the event loop between steps."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import torch

from asearch.engines.embedded.batch import Batch
from asearch.engines.embedded.request import Request
from asearch.engines.embedded.tally import Tally
from asearch.models.decoder import Decoder

log = logging.getLogger(__name__)
_IDLE_WAIT_S = 1.0
T = TypeVar("T")
Reports = list[tuple[Request, int, dict[str, Any] | None]]


class Scheduler:
    """Methods are called from the event loop; what they do to the batch happens on the thread, between two steps."""

    def __init__(
        self,
        batch: Batch,
        loop: asyncio.AbstractEventLoop,
        n_threads: int,
        *,
        step_delay_s: float = 0.0,
        tally: Tally | None = None,
    ) -> None:
        """`step_delay_s` is added to every step; `tally` counts the tokens that were sampled."""
        self._step_delay_s, self._tally = step_delay_s, tally
        self._batch, self._loop, self._n_threads = batch, loop, n_threads
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._paused = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def paused(self) -> bool:
        """Whether steps are suspended."""
        return self._paused

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Lets the thread end after the step it is in. Returns at once."""
        self._stopping = True
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread's end after `stop`; False if it has not come within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queues a request; `request.advance` is called on the event loop as it goes on."""
        self._post(lambda: self._batch.add(request))

    def abort(self, rid: str | None) -> None:
        """Ends the request of that id, or all of them (None); each ends with what it has. Returns at once."""
        finish = {"type": "abort", "message": "Aborted by AbortReq.", "status_code": None, "err_type": None}
        self._post(lambda: self._abort(lambda request: rid is None or request.rid == rid, finish))

    def withdraw(self, request: Request) -> None:
        """Ends a request whose client has gone."""
        if request.finish is None:
            finish = {"type": "abort", "message": "The client has gone.", "status_code": None, "err_type": None}
            self._post(lambda: self._abort(lambda other: other is request, finish))

    def pause(self, mode: str) -> Coroutine[Any, Any, int]:
        """Suspends steps. `abort` ends all requests, `retract` sends running ones back to the queue, `in_place`
        leaves them where they are. Returns the number of requests held."""

        def act() -> int:
            self._paused = True
            if mode == "abort":
                finish = {"type": "abort", "message": "Aborted by pause.", "status_code": None, "err_type": None}
                self._abort(lambda _: True, finish)
            elif mode == "retract":
                self._batch.retract()
            return self._batch.n_waiting + self._batch.n_running

        return self._ask(act)

    def resume(self) -> Coroutine[Any, Any, None]:
        """Ends a pause; harmless without one."""

        def act() -> None:
            self._paused = False

        return self._ask(act)

    def replace(self, decoder: Decoder, version: str | None, abort_all: bool) -> Coroutine[Any, Any, int]:
        """Puts other weights in place (None keeps the version's name); returns the number of requests held then."""

        def act() -> int:
            if abort_all:
                finish = {"type": "abort", "message": "Aborted by update.", "status_code": None, "err_type": None}
                self._abort(lambda _: True, finish)
            self._batch.replace(decoder, self._batch.version if version is None else version)
            return self._batch.n_waiting

        return self._ask(act)

    def flush(self) -> Coroutine[Any, Any, bool]:
        """Forgets kept prefixes; False if requests run."""
        return self._ask(self._batch.flush)

    def counters(self) -> dict[str, int]:
        """Work done and at hand, for reports."""
        batch = self._batch
        return {
            "n_generated_tokens": batch.n_generated,
            "n_prefilled_tokens": batch.n_prefilled,
            "n_reused_tokens": batch.n_reused,
            "n_running": batch.n_running,
            "n_waiting": batch.n_waiting,
        }

    def _abort(self, chosen: Callable[[Request], bool], finish: dict[str, Any]) -> None:
        self._batch.abort(chosen, finish)

    def _post(self, act: Callable[[], None]) -> None:
        self._inbox.append(act)
        self._wake.set()

    def _tell(self, act: Callable[..., None], *given: Any) -> None:
        """Calls `act` on the event loop. A step that outlasts the wait for the thread's end has nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(act, *given)
        except RuntimeError:
            if not (self._stopping and self._loop.is_closed()):
                raise

    async def _ask(self, act: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # pyright: ignore[reportArgumentType]  (None only beside an error)

        def run() -> None:
            try:
                result = act()
            except Exception as error:  # told to whoever asked
                self._tell(settle, None, error)
            else:
                self._tell(settle, result, None)

        self._post(run)
        return await future

    def _run(self) -> None:
        torch.set_num_threads(self._n_threads)
        while not self._stopping:
            self._wake.clear()
            while self._inbox:
                self._inbox.popleft()()
            worked = False if self._paused else self._step()
            if worked:
                self._after_step()
            if self._batch.advanced:
                reports, self._batch.advanced = self._batch.advanced, []
                self._tell(_deliver, reports)
            if not worked:
                self._wake.wait(_IDLE_WAIT_S)

    def _after_step(self) -> None:
        if self._tally is not None:
            self._tally.write(self._batch.n_generated)
        if self._step_delay_s:
            time.sleep(self._step_delay_s)

    def _step(self) -> bool:
        try:
            return self._batch.step()
        except Exception as error:
            log.exception("a step failed; its requests are ended and the server goes on")
            finish = {"type": "abort", "message": f"internal error: {error}", "status_code": 500}
            self._batch.drop_all(finish | {"err_type": type(error).__name__})
            return True


def _deliver(reports: Reports) -> None:
    for request, n_ready, finish in reports:
        request.advance(n_ready, finish)
