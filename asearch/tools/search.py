"""The `search` tool: passages of the corpus server for a query."""

from collections.abc import Mapping

import msgspec

from asearch.tools.base import ToolFailure, argument
from asearch.tools.client import CorpusClient
from schemas.records import Document, ToolResult

MAX_QUERY_CHARS = 2_000


class _Found(msgspec.Struct):
    contents: str
    url: str = ""
    title: str = ""
    id: str | int | None = None


class _RetrieveReply(msgspec.Struct):
    result: list[list[_Found]]


_decoder = msgspec.json.Decoder(_RetrieveReply)


class SearchTool:
    """`search(query)`: the `topk` best passages."""

    name = "search"
    parameter = "query"

    def __init__(self, client: CorpusClient, topk: int = 3) -> None:
        self._client = client
        self._topk = topk

    async def call(self, arguments: Mapping[str, str], *, deadline_s: float) -> ToolResult:
        """Argument `query`. No hit is a result with no documents."""
        return await self._client.measured(self._search(arguments), deadline_s=deadline_s)

    async def _search(self, arguments: Mapping[str, str]) -> list[Document]:
        query = argument(arguments, "query", MAX_QUERY_CHARS)
        body = msgspec.json.encode({"queries": [query], "topk": self._topk, "return_scores": False})
        reply = await self._client.post("/retrieve", body)
        try:
            result = _decoder.decode(reply.body).result
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ToolFailure("retryable", f"POST /retrieve: the reply is not what the interface says: {error}") from error
        return [Document(url=_url(found), text=found.contents, title=found.title) for hits in result[:1] for found in hits]


def _url(found: _Found) -> str:
    return found.url or ("" if found.id is None else f"/page/{found.id}")
