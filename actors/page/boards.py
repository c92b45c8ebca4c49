"""The boards of a workspace: the run that is served, and others of the same broker while somebody compares with them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from actors.page.board import Board, open_board
from actors.runtime.jetstream import connect
from actors.runtime.platform import Platform
from actors.runtime.run_files import RunFile
from actors.runtime.run_source import RunSource, choose_run
from actors.runtime.run_states import RunState, run_states
from actors.runtime.waking import report_failure
from actors.runtime.workspace import Workspace

MAX_OTHERS = 4
"""Other runs that are open at once; the one that was asked for longest ago goes first, those that somebody follows last."""
RUNS_S = 5.0
"""How old the list of runs may be."""


class Boards:
    """`own` is the run that is served; its board is always there."""

    def __init__(self, own: Board, workspace: Workspace, platform: Platform) -> None:
        self.own = own
        self._workspace = workspace
        self._platform = platform
        self._others: dict[str, _Held] = {}
        self._turn = asyncio.Lock()
        self._runs: list[dict[str, Any]] = []
        self._looked_s = -RUNS_S
        self._looking = asyncio.Lock()

    async def board(self, run: str) -> Board:
        """The board of a run of this workspace. Raises InputError, BusError."""
        if run == self.own.source.run:
            return self.own
        async with self._turn:
            held = self._others.pop(run, None)
            if held is None or held.task.done():
                held = await self._open(run)
            self._others[run] = held
            while len(self._others) > MAX_OTHERS:
                await self._others.pop(self._least_missed(run)).close()
        assert held.board is not None  # noqa: S101
        return held.board

    def _least_missed(self, but: str) -> str:
        """Of the open runs but one, the first that nobody looks at, else the first."""
        runs = [run for run in self._others if run != but]
        unseen = (run for run in runs if (board := self._others[run].board) is None or not board.n_viewers)
        return next(unseen, runs[0])

    async def _open(self, run: str) -> "_Held":
        content = choose_run(self._workspace, run)
        # The own run's broker: that of the workspace, which keeps every run's streams.
        held = _Held(self._held(content, self.own.source.url))
        await held.opened()
        return held

    @contextlib.asynccontextmanager
    async def _held(self, content: RunFile, url: str) -> AsyncGenerator[Board]:
        bus = await connect(url, content.run, f"viewer-{self._platform.new_id()[:6]}", self._platform, only_looks=True)
        try:
            source = RunSource(content, self._workspace.run_dir(content.run), bus)
            async with open_board(source, bus, self._workspace) as board:
                yield board
        finally:
            await bus.close()

    async def close(self) -> None:
        """Close the boards of other runs."""
        while self._others:
            await self._others.popitem()[1].close()

    async def runs(self) -> list[dict[str, Any]]:
        """Every run of the workspace in a line, the newest last; at most RUNS_S old."""
        async with self._looking:
            if self._platform.monotonic() - self._looked_s > RUNS_S:
                # Its own broker, and never another: to start one is its supervisor's.
                states = await run_states(self._workspace, self._platform, self.own.source.url)
                self._runs = [_line(state) for state in states]
                self._looked_s = self._platform.monotonic()
        return self._runs


def _line(state: RunState) -> dict[str, Any]:
    return {**msgspec.structs.asdict(state), "steps": state.step, "created_ns": state.started_ns}


class _Held:
    """A board in a task of its own, which opens and closes it: requests come and go."""

    def __init__(self, context: AbstractAsyncContextManager[Board]) -> None:
        self.board: Board | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self.task = asyncio.create_task(self._hold(context), name="board of another run")

    async def _hold(self, context: AbstractAsyncContextManager[Board]) -> None:
        async with context as self.board:
            self._ready.set()
            await self._closing.wait()

    async def opened(self) -> None:
        """Wait until the board is there. Raises what keeps it from being opened."""
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self.task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self.task.done():
            self.task.result()
        self.task.add_done_callback(report_failure)

    async def close(self) -> None:
        """Close the board."""
        self._closing.set()
        await asyncio.wait({self.task})
