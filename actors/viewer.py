"""Shows a run while it goes on: the page on loopback, its feeds and metrics. Reads only; nothing waits for it."""

import asyncio

from actors.page.board import open_board
from actors.page.boards import Boards
from actors.page.server import HOST, Page, serving
from actors.runtime.actor import Actor, Context
from actors.runtime.run_files import RunFile
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import Workspace

URL_FILE = "viewer.url"


class Viewer(Actor):
    """One per run. Its address is in `viewer.url` of the run's folder; one that is started again keeps its port."""

    kind = "viewer"

    def __init__(self, context: Context, content: RunFile) -> None:
        super().__init__(context)
        self._content = content
        self._boards: Boards | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._page: asyncio.Task[None] | None = None

    def gauges(self) -> dict[str, float]:
        """Who looks, and how many episodes there are to look at."""
        if self._boards is None:
            return {}
        return {"n_viewers": self._boards.own.n_viewers, "n_rows": len(self._boards.own.rows)}

    async def start(self) -> None:
        """Fold what is there, then serve."""
        self._page = self.spawn(self._serve(), "page")
        await self._ready.wait()

    async def _serve(self) -> None:
        """The page from its opening to its end, in one task: what it opens is closed by whoever opened it."""
        run_dir, workspace = self.context.run_dir, Workspace(self.context.run_dir.parent)
        source = RunSource(self._content, run_dir, self.bus)
        async with open_board(source, self.bus, workspace) as board:
            self._boards = Boards(board, workspace, self.platform)
            async with serving(Page(self._boards, self.platform), self._wanted_port()) as port:
                url = f"http://{HOST}:{port}/"
                (run_dir / URL_FILE).write_text(f"{url}\n")
                self.log.info("the page is served", url=url)
                self._ready.set()
                await self._closing.wait()
            await self._boards.close()

    def _wanted_port(self) -> int:
        """The port of an earlier life, so that open pages find their way back."""
        try:
            return int((self.context.run_dir / URL_FILE).read_text().strip().rstrip("/").rpartition(":")[2])
        except (OSError, ValueError):
            return self.settings.viewer.port

    async def work(self) -> None:
        """The server does the work."""
        await self.wait_stopping()

    async def drain(self) -> None:
        """Close the page and its feeds."""
        self._closing.set()
        if self._page is not None:
            await self._page
