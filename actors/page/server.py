"""The HTTP server of the page: static files, JSON, feeds. On loopback, read only."""

import asyncio
import contextlib
import errno
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from actors.page import answers, figures
from actors.page.board import Board
from actors.page.boards import Boards
from actors.page.numbers import number
from actors.page.safety import EXPORT_CSP, add_headers, guard, problem
from actors.page.subscribers import Audience, Subscriber
from actors.page.tokens import tokens
from actors.runtime.metrics import Metrics, MetricsUnavailableError
from actors.runtime.platform import Platform
from actors.runtime.waking import report_failure
from actors.runtime.workspace import Workspace
from asearch.traces.behaviour import RULES
from schemas.topology import key_token

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
SHUTDOWN_S = 1.0
ANSWER_S = 10.0
"""How long an answer may take: the broker is asked for longer, in case that it comes back."""
_encode = msgspec.json.Encoder().encode


class Page:
    """The routes over the boards of a workspace."""

    def __init__(self, boards: Boards, metrics: Metrics, platform: Platform) -> None:
        self._boards = boards
        self._metrics = metrics
        self._platform = platform

    def application(self) -> web.Application:
        """The application with every route."""
        app = web.Application(middlewares=[guard])
        app.on_response_prepare.append(add_headers)
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/runs/{view:.+}", self._index),
                web.get("/healthz", self._health),
                web.get("/metrics", self._scrape),
                web.get("/api/runs", self._runs),
                web.get("/api/runs/{run}", self._of_run(self._state)),
                web.get("/api/runs/{run}/curve", self._of_run(self._curve)),
                web.get("/api/runs/{run}/samples", self._of_run(self._samples)),
                web.get("/api/runs/{run}/episodes", self._of_run(self._episodes)),
                web.get("/api/runs/{run}/episodes/{episode}", self._of_run(self._episode)),
                web.get("/api/runs/{run}/episodes/{episode}/tokens", self._of_run(self._tokens)),
                web.get("/api/runs/{run}/groups/{group}", self._of_run(self._group)),
                web.get("/api/runs/{run}/behaviour", self._of_run(self._behaviour)),
                web.get("/api/runs/{run}/export/{episode}.html", self._export),
                web.get("/api/runs/{run}/feed", self._feed),
                web.get("/api/runs/{run}/episodes/{episode}/feed", self._episode_feed),
                web.static("/static", STATIC),
            ]
        )
        return app

    def _of_run(self, answer: Callable[[Board, web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            board = await self._board(request)
            async with asyncio.timeout(ANSWER_S):
                return _json(await answer(board, request))

        return handle

    async def _board(self, request: web.Request) -> Board:
        return await self._boards.board(request.match_info["run"])

    # --- what is asked for once ---

    async def _index(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"run": self._boards.own.source.run, "connected": self._boards.own.bus.is_connected})

    async def _scrape(self, _: web.Request) -> web.Response:
        try:
            body, content_type = self._metrics.render()
        except MetricsUnavailableError as error:
            return problem(501, str(error))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _runs(self, _: web.Request) -> web.Response:
        return _json({"here": self._boards.own.source.run, "runs": await self._boards.runs()})

    async def _state(self, board: Board, _: web.Request) -> Any:
        return board.state()

    async def _curve(self, board: Board, request: web.Request) -> Any:
        return {"points": figures.points(board.view.report, number(request.query.get("after", ""), -1))}

    async def _samples(self, board: Board, request: web.Request) -> Any:
        begin = number(request.query.get("after_ns", ""), 0)
        return {"samples": [sample for sample in board.samples.kept if sample["at_ns"] > begin]}

    async def _episodes(self, board: Board, request: web.Request) -> Any:
        board.need_stages()
        return board.windows.answer(request.query_string, lambda: answers.window(board, dict(request.query)))

    async def _episode(self, board: Board, request: web.Request) -> Any:
        return await answers.episode(board, request.match_info["episode"])

    async def _tokens(self, board: Board, request: web.Request) -> Any:
        return await tokens(board, request.match_info["episode"])

    async def _group(self, board: Board, request: web.Request) -> Any:
        return await answers.group(board, request.match_info["group"])

    async def _behaviour(self, board: Board, _: web.Request) -> Any:
        """What is known after one more piece of work; the page asks again until it is done."""
        await board.behaviour.advance()
        known = board.behaviour.to_json()
        known["summary"]["by_step"] = known.pop("by_step")
        return {**known, "rules": {name: inspect.getdoc(rule) or "" for name, rule in RULES.items()}}

    async def _export(self, request: web.Request) -> web.Response:
        """The file of an episode, to be kept. Its own policy allows the style that it carries, and no script."""
        name = request.match_info["episode"]
        board = await self._board(request)
        async with asyncio.timeout(ANSWER_S):
            text = await answers.export(board, name)
        headers = {"Content-Security-Policy": EXPORT_CSP, "Content-Disposition": f'attachment; filename="{key_token(name)}.html"'}
        return web.Response(text=text, content_type="text/html", headers=headers)

    # --- feeds ---

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        board = await self._board(request)
        subscriber = Subscriber(self._platform)
        board.greet(subscriber)
        return await _serve(request, subscriber, board.audience)

    async def _episode_feed(self, request: web.Request) -> web.StreamResponse:
        board = await self._board(request)
        async with asyncio.timeout(ANSWER_S):
            watched = await board.watch(request.match_info["episode"])
        subscriber = Subscriber(self._platform)
        watched.join(subscriber, request.headers.get("Last-Event-ID") or request.query.get("after", ""))
        board.joined()
        return await _serve(request, subscriber, watched.audience)


async def _serve(request: web.Request, subscriber: Subscriber, audience: Audience) -> web.StreamResponse:
    audience.join(subscriber)
    try:
        return await subscriber.serve(request)
    finally:
        audience.leave(subscriber)


def _json(value: Any) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json", headers={"Cache-Control": "no-store"})


@contextlib.asynccontextmanager
async def serving(board: Board, workspace: Workspace, port: int, expected: Iterable[tuple[str, str]] = ()) -> AsyncGenerator[str]:
    """Serve the page of a run on `port`, or on a free one where it is taken, until the block is left; gives its address.

    `expected` are kind and id of the actors that should be there.
    """
    platform = board.bus.platform
    boards = Boards(board, workspace, platform)
    metrics = Metrics(board.source.run, lambda: board.view, expected=expected, platform=platform)
    pushing = asyncio.create_task(metrics.push(), name="push metrics")
    pushing.add_done_callback(report_failure)
    try:
        async with _listening(Page(boards, metrics, platform), port) as bound:
            yield f"http://{HOST}:{bound}/"
    finally:
        pushing.cancel()
        await boards.close()
        await asyncio.to_thread(metrics.close)


@contextlib.asynccontextmanager
async def _listening(page: Page, port: int) -> AsyncGenerator[int]:
    runner = web.AppRunner(page.application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
            await web.TCPSite(runner, HOST, 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
