"""Shows a run while it goes on: the page on loopback, its feeds and metrics. Reads only; nothing waits for it."""

import asyncio

from actors.page.board import Board, open_board
from actors.page.server import serving
from actors.runtime.actor import Actor, Context
from actors.runtime.roster import actors_of
from actors.runtime.run_files import URL_FILE, RunFile, read_url
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import Workspace


class Viewer(Actor):
    """One per run. Its address is in `viewer.url` of the run's folder; one that is started again keeps its port."""

    kind = "viewer"

    def __init__(self, context: Context, content: RunFile) -> None:
        super().__init__(context)
        self._content = content
        self._board: Board | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._page: asyncio.Task[None] | None = None

    def gauges(self) -> dict[str, float]:
        """Who looks, and how many episodes there are to look at."""
        return {} if self._board is None else {"n_viewers": self._board.n_viewers, "n_rows": len(self._board.rows)}

    async def start(self) -> None:
        """Fold what is there, then serve."""
        self._page = self.spawn(self._serve(), "page")
        await self._ready.wait()

    async def _serve(self) -> None:
        """The page from its opening to its end, in one task: what it opens is closed by whoever opened it."""
        run_dir, workspace = self.context.run_dir, Workspace(self.context.run_dir.parent)
        source = RunSource(self._content, run_dir, self.bus)
        async with (
            open_board(source, self.bus, workspace, keeps_samples=True) as self._board,
            serving(self._board, workspace, self._wanted_port(), actors_of(self.settings)) as url,
        ):
            (run_dir / URL_FILE).write_text(f"{url}\n")
            self.log.info("the page is served", url=url)
            self._ready.set()
            await self._closing.wait()

    def _wanted_port(self) -> int:
        """The port of an earlier life, so that open pages find their way back."""
        _, _, port = read_url(self.context.run_dir).rstrip("/").rpartition(":")
        return int(port) if port.isdecimal() else self.settings.viewer.port

    async def work(self) -> None:
        """The server does the work."""
        await self.wait_stopping()

    async def drain(self) -> None:
        """Close the page and its feeds."""
        self._closing.set()
        if self._page is not None:
            await self._page
