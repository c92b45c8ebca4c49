"""The `access` tool: the text of a page of the corpus server."""

import asyncio
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

import msgspec

from asearch.corpus.extract import PageExtractor, PageText
from asearch.corpus.passages import PAGE_PREFIX
from asearch.tools.base import ToolFailure, argument
from asearch.tools.client import CorpusClient
from schemas.records import Document, ToolResult

MAX_URL_CHARS = 2_000
N_EXTRACTION_THREADS = 2


class _Page(msgspec.Struct):
    contents: str
    url: str = ""
    title: str = ""


class _AccessReply(msgspec.Struct):
    result: list[_Page | None]


_decoder = msgspec.json.Decoder(_AccessReply)


class AccessTool:
    """`access(url)`: the page as one document, or no document where there is no such page.

    A page of the server itself is fetched as HTML and extracted here; any other url is looked up with `/access`, so that this
    tool never leaves the corpus.
    """

    name = "access"
    parameter = "url"

    def __init__(self, client: CorpusClient, extractor: PageExtractor | None = None) -> None:
        self._client = client
        self._extractor = extractor or PageExtractor()
        self._threads = asyncio.Semaphore(N_EXTRACTION_THREADS)

    async def call(self, arguments: Mapping[str, str], *, deadline_s: float) -> ToolResult:
        """Argument `url`."""
        return await self._client.measured(self._access(arguments), deadline_s=deadline_s)

    async def _access(self, arguments: Mapping[str, str]) -> list[Document]:
        url = argument(arguments, "url", MAX_URL_CHARS)
        path = own_path(url, self._client.base_url)
        return await (self._look_up(url) if path is None else self._fetch(url, path))

    async def _fetch(self, url: str, path: str) -> list[Document]:
        reply = await self._client.get(path)
        if reply.status == 404:
            # A row's own url may look like a page path without being one.
            return await self._look_up(url)
        page = await self._extract(reply.body)
        return [Document(url=url, text=page.text, title=page.title)] if page.text else []

    async def _extract(self, body: bytes) -> PageText:
        found = self._extractor.remembered(body)
        if found is not None:
            return found
        async with self._threads:
            return await asyncio.to_thread(self._extractor.extract, body)

    async def _look_up(self, url: str) -> list[Document]:
        reply = await self._client.post("/access", msgspec.json.encode({"urls": [url]}))
        try:
            result = _decoder.decode(reply.body).result
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ToolFailure("retryable", f"POST /access: the reply is not what the interface says: {error}") from error
        return [Document(url=url, text=page.contents, title=page.title) for page in result[:1] if page and page.contents]


def own_path(url: str, base_url: str) -> str | None:
    """The path of `/page/{id}` on the server at `base_url`, quoted, for a url that names one; None for any other url."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme or parts.netloc:
        base = urlsplit(base_url)
        if (parts.scheme, parts.netloc) != (base.scheme, base.netloc):
            return None
    if not parts.path.startswith(PAGE_PREFIX):
        return None
    passage_id = unquote(parts.path.removeprefix(PAGE_PREFIX))
    return PAGE_PREFIX + quote(passage_id, safe="") if passage_id else None
