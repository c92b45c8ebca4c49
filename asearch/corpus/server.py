"""The corpus server: `/retrieve`, `/access`, `/page/{id}` and `/health` over HTTP.

Requests and replies of `/retrieve` are those of Search-R1's retrieval server, with `/access` those of ASearcher's local knowledge
server, so that clients of either work unchanged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from asearch.corpus.index import Hit
from asearch.corpus.passages import PAGE_PREFIX, Passage
from asearch.corpus.store import CorpusStore, Page

MAX_REQUEST_BYTES = 1 << 20
MAX_QUERIES = 256
MAX_QUERY_CHARS = 10_000
MAX_TOPK = 100
MAX_URLS = 64
DEFAULT_TOPK = 3
INLINE_WORK = 20_000
"""Passages times queries up to which a search is faster on the event loop (half a millisecond) than in a thread."""
MAX_THREADS = 2

RequestT = TypeVar("RequestT")


class RetrieveRequest(msgspec.Struct):
    """Body of `POST /retrieve`."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class ScoredDocument(msgspec.Struct):
    """A document with its BM25 score."""

    document: Passage
    score: float


class AccessRequest(msgspec.Struct):
    """Body of `POST /access`."""

    urls: list[str]


class BadRequest(Exception):
    """A request that the server answers with status 400."""


class CorpusApp:
    """The handlers of one corpus. `own_hosts` are the `host:port` names under which the server is known to itself."""

    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        self._threads = asyncio.Semaphore(MAX_THREADS)
        self.own_hosts: frozenset[str] = frozenset()

    def application(self) -> web.Application:
        """An aiohttp application with all routes."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_answer_bad_requests])
        app.router.add_post("/retrieve", self.retrieve)
        app.router.add_post("/access", self.access)
        app.router.add_get(PAGE_PREFIX + "{id:.+}", self.page)
        app.router.add_get("/health", self.health)
        return app

    async def retrieve(self, request: web.Request) -> web.Response:
        """Search every query."""
        asked = await _decode_body(request, RetrieveRequest)
        topk = DEFAULT_TOPK if asked.topk is None else asked.topk
        _require(1 <= topk <= MAX_TOPK, f"`topk` must be in 1..{MAX_TOPK}, not {topk}")
        _require(len(asked.queries) <= MAX_QUERIES, f"at most {MAX_QUERIES} queries a request")
        _require(all(len(q) <= MAX_QUERY_CHARS for q in asked.queries), f"a query has at most {MAX_QUERY_CHARS} characters")
        index = self._store.index
        if len(index) * len(asked.queries) <= INLINE_WORK:
            found = index.search(asked.queries, topk)
        else:
            async with self._threads:
                found = await asyncio.to_thread(index.search, asked.queries, topk)
        return _json({"result": [_documents(hits, asked.return_scores) for hits in found]})

    async def access(self, request: web.Request) -> web.Response:
        """Text of every url, null where there is none."""
        asked = await _decode_body(request, AccessRequest)
        _require(len(asked.urls) <= MAX_URLS, f"at most {MAX_URLS} urls a request")
        hosts = self.own_hosts | {request.host}

        def read() -> list[Page | None]:
            return [self._store.page(url, hosts) for url in asked.urls]

        async with self._threads:
            return _json({"result": await asyncio.to_thread(read)})

    async def page(self, request: web.Request) -> web.Response:
        """The HTML page of a passage."""
        async with self._threads:
            body = await asyncio.to_thread(self._store.page_html, request.match_info["id"])
        if body is None:
            return _json({"error": "no such page"}, status=404)
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    async def health(self, _request: web.Request) -> web.Response:
        """200 once the index is loaded."""
        return _json({"status": "ok", "passages": len(self._store.passages)})


def _documents(hits: list[Hit], with_scores: bool) -> list[Passage] | list[ScoredDocument]:
    if with_scores:
        return [ScoredDocument(passage, score) for passage, score in hits]
    return [passage for passage, _ in hits]


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BadRequest(message)


async def _decode_body(request: web.Request, body_type: type[RequestT]) -> RequestT:
    try:
        return msgspec.json.decode(await request.read(), type=body_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a valid request: {error}") from error


@web.middleware
async def _answer_bad_requests(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadRequest as error:
        return _json({"error": str(error)}, status=400)
    except web.HTTPException as error:
        return _json({"error": error.reason}, status=error.status)
