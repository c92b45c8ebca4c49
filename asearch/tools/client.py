"""HTTP client of the corpus server that all tools of a process share: bounded concurrency, retries, byte limits."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec

from asearch.tools.base import Clock, ToolFailure
from asearch.tools.limits import ClientLimits
from schemas.records import Document, ToolResult

_RETRIED_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))


class Reply(msgspec.Struct, frozen=True):
    """An HTTP reply: status, and the body cut at `max_reply_bytes`."""

    status: int
    body: bytes
    cut: bool


class CorpusClient:
    """Requests to one corpus server. The caller owns the session and closes it."""

    def __init__(
        self,
        base_url: str,
        session: aiohttp.ClientSession,
        *,
        sleep: Callable[[float], Awaitable[None]],
        now_ns: Clock,
        limits: ClientLimits | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.limits = limits or ClientLimits()
        self.now_ns = now_ns
        self._session = session
        self._sleep = sleep
        self._slots = asyncio.Semaphore(self.limits.n_concurrent)

    async def post(self, path: str, body: bytes) -> Reply:
        """POST a JSON body. Raises ToolFailure."""
        return await self._attempts("POST", path, body)

    async def get(self, path: str) -> Reply:
        """GET a path of the server. Raises ToolFailure; a status of 404 is a reply."""
        return await self._attempts("GET", path, None)

    async def measured(self, documents: Awaitable[list[Document]], *, deadline_s: float) -> ToolResult:
        """Await a tool's documents within a deadline; failures and the deadline become error results."""
        begin_ns = self.now_ns()
        try:
            async with asyncio.timeout(deadline_s):
                found = await documents
        except ToolFailure as failure:
            return ToolResult(error=failure.kind, message=str(failure), elapsed_ns=self.now_ns() - begin_ns)
        except TimeoutError:
            message = f"the call did not end within {deadline_s:g} s"
            return ToolResult(error="timeout", message=message, elapsed_ns=self.now_ns() - begin_ns)
        return ToolResult(documents=found, elapsed_ns=self.now_ns() - begin_ns)

    async def _attempts(self, method: str, path: str, body: bytes | None) -> Reply:
        failure = ToolFailure("retryable", "no attempt was made")
        for attempt in range(self.limits.attempts):
            if attempt:
                await self._sleep(self.limits.backoff_s * 2 ** (attempt - 1))
            try:
                async with self._slots:
                    reply = await self._once(method, path, body)
            except TimeoutError:
                failure = ToolFailure("timeout", f"{method} {path}: no reply within {self.limits.timeout_s:g} s")
                continue
            except aiohttp.ClientError as error:
                failure = ToolFailure("retryable", f"{method} {path}: {type(error).__name__}: {error}")
                continue
            if reply.status not in _RETRIED_STATUS:
                return _checked(reply, method, path)
            failure = ToolFailure("retryable", f"{method} {path}: status {reply.status}")
        raise failure

    async def _once(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = {"Content-Type": "application/json"} if body is not None else None
        async with (
            asyncio.timeout(self.limits.timeout_s),
            self._session.request(method, self.base_url + path, data=body, headers=headers) as response,
        ):
            return await _read_bounded(response, self.limits.max_reply_bytes)


def _checked(reply: Reply, method: str, path: str) -> Reply:
    if reply.status in (200, 404):
        return reply
    raise ToolFailure("permanent", f"{method} {path}: status {reply.status}: {reply.body[:200].decode(errors='replace')}")


async def _read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> Reply:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > max_bytes:
            response.close()
            return Reply(response.status, bytes(body[:max_bytes]), cut=True)
    return Reply(response.status, bytes(body), cut=False)
