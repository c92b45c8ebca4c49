"""The search and access tools against a real corpus server, and against servers that misbehave."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from servers_for_tests import client_of, listening

from asearch.errors import ConfigError
from asearch.tools.access import AccessTool, own_path
from asearch.tools.base import ToolSet
from asearch.tools.client import CorpusClient
from asearch.tools.limits import ClientLimits
from asearch.tools.search import SearchTool
from schemas.records import Document

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def test_search_returns_documents_best_first(corpus: CorpusClient):
    result = await SearchTool(corpus, topk=2).call({"query": "mother of Zed"}, deadline_s=10)
    assert result.error is None
    assert result.documents[0] == Document(url="http://wiki.example/zed", text="The mother of Zed is Ana.", title="Zed")
    assert result.elapsed_ns > 0


async def test_search_without_hits_is_not_an_error(corpus: CorpusClient):
    result = await SearchTool(corpus).call({"query": "\ud800 ???"}, deadline_s=10)
    assert (result.error, result.documents) == (None, [])


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("/page/0", "Marn\nMarn is a baker in Ulto."),
        (" /page/0 ", "Marn\nMarn is a baker in Ulto."),
        ("http://wiki.example/zed", "Zed\nThe mother of Zed is Ana."),
        ("/page/odd%2F%20id", "Odd one."),
        ("/page/odd/ id", "Odd one."),
        ("/page/elsewhere", "Looks like a path."),
    ],
)
async def test_access_reads_pages(corpus: CorpusClient, url: str, text: str):
    result = await AccessTool(corpus).call({"url": url}, deadline_s=10)
    assert result.error is None
    (document,) = result.documents
    assert document.text.endswith(text)
    assert document.url == url.strip()


async def test_absolute_urls_of_the_server_are_its_pages(corpus: CorpusClient):
    result = await AccessTool(corpus).call({"url": f"{corpus.base_url}/page/0"}, deadline_s=10)
    assert result.documents[0].title == "Marn"


@pytest.mark.parametrize(
    "url", ["/page/none", "http://elsewhere.example/page/0", "http://[", "x", "/page/../health", "file:///etc/passwd"]
)
async def test_unknown_urls_are_empty_results(corpus: CorpusClient, url: str):
    result = await AccessTool(corpus).call({"url": url}, deadline_s=10)
    assert (result.error, result.documents) == (None, [])


async def test_wrong_arguments_and_names_are_refused(corpus: CorpusClient):
    tools = ToolSet(SearchTool(corpus), AccessTool(corpus))
    for name, text in (("search", " "), ("search", "x" * 3000), ("access", ""), ("serach", "x")):
        result = await tools.call(name, text, deadline_s=10)
        assert result.error == "refused", (name, text)
        assert result.message
    assert (await tools.call("search", "Zed", deadline_s=10)).error is None
    with pytest.raises(ConfigError, match="did you mean 'search'"):
        tools.get("serach")


@contextlib.asynccontextmanager
async def server_of(handler: Handler, **limits: float) -> AsyncIterator[CorpusClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner, url = await listening(app)
    async with aiohttp.ClientSession() as session:
        yield client_of(url, session, **limits)
    await runner.cleanup()


async def test_failures_are_tried_again_and_then_succeed():
    n_calls = 0

    async def flaky(_request: web.Request) -> web.Response:
        nonlocal n_calls
        n_calls += 1
        if n_calls < 3:
            return web.Response(status=503)
        return web.json_response({"result": [[{"contents": "x", "url": "u"}]]})

    async with server_of(flaky) as client:
        result = await SearchTool(client).call({"query": "x"}, deadline_s=10)
    assert (result.error, n_calls, result.documents) == (None, 3, [Document(url="u", text="x")])


@pytest.mark.parametrize(
    ("status", "body", "kind", "n_wanted"),
    [
        (503, "", "retryable", ClientLimits().attempts),
        (400, "no", "permanent", 1),
        (200, "not json", "retryable", 1),
        (200, "{}", "retryable", 1),
    ],
)
async def test_errors_have_kinds(status: int, body: str, kind: str, n_wanted: int):
    n_calls = 0

    async def failing(_request: web.Request) -> web.Response:
        nonlocal n_calls
        n_calls += 1
        return web.Response(status=status, text=body)

    async with server_of(failing) as client:
        result = await SearchTool(client).call({"query": "x"}, deadline_s=10)
    assert (result.error, n_calls) == (kind, n_wanted)
    assert result.message


async def test_a_server_that_is_gone_is_retryable(unused_tcp_port: int):
    async with aiohttp.ClientSession() as session:
        client = client_of(f"http://127.0.0.1:{unused_tcp_port}", session)
        assert (await SearchTool(client).call({"query": "x"}, deadline_s=10)).error == "retryable"
        assert (await AccessTool(client).call({"url": "/page/1"}, deadline_s=10)).error == "retryable"


async def test_a_call_outlasts_a_server_that_is_started_again(unused_tcp_port: int):
    slept_s: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept_s.append(delay_s)

    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{unused_tcp_port}"
        client = CorpusClient(url, session, sleep=sleep, now_ns=time.monotonic_ns, limits=ClientLimits())
        assert (await SearchTool(client).call({"query": "x"}, deadline_s=10)).error == "retryable"
    assert sum(slept_s) > 5.0, "a server takes a few seconds until it listens again"


async def test_a_slow_server_times_out_by_attempt_and_by_deadline():
    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with server_of(slow, timeout_s=0.05, attempts=2) as client:
        by_attempt = await SearchTool(client).call({"query": "x"}, deadline_s=10)
        assert (by_attempt.error, "0.05 s" in by_attempt.message) == ("timeout", True)
    async with server_of(slow) as client:
        by_deadline = await SearchTool(client).call({"query": "x"}, deadline_s=0.05)
        assert (by_deadline.error, "did not end" in by_deadline.message) == ("timeout", True)


async def test_page_bytes_and_concurrency_are_bounded():
    n_open = most = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal n_open, most
        n_open += 1
        most = max(most, n_open)
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                await response.write(b"<p>word</p>" * 100)
        n_open -= 1
        return response

    async with server_of(endless, max_reply_bytes=5_000, n_concurrent=3) as client:
        tool = AccessTool(client)
        results = await asyncio.gather(*(tool.call({"url": f"/page/{i}"}, deadline_s=20) for i in range(9)))
    assert all(result.error is None and 0 < len(result.documents[0].text) <= 5_000 for result in results)
    assert most <= 4


def test_limits_must_be_positive():
    with pytest.raises(ConfigError):
        ClientLimits(attempts=0)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/page/1", "/page/1"),
        ("/page/a b", "/page/a%20b"),
        ("http://h:1/page/1", "/page/1"),
        ("http://h:2/page/1", None),
        ("https://h:1/page/1", None),
        ("//h:1/page/1", None),
        ("/page/", None),
        ("/other", None),
    ],
)
def test_own_paths(url: str, path: str | None):
    assert own_path(url, "http://h:1") == path
