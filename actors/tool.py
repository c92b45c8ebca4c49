"""Executes tool calls: reads `ToolRequested`, calls the tool, hands the result to the driver that asked."""

import aiohttp

from actors.runtime.actor import Actor, Context
from actors.runtime.bus import Stored
from actors.runtime.work_spans import tool_span
from asearch.errors import NoResponderError, RequestTimeoutError
from asearch.tools.access import AccessTool
from asearch.tools.base import ToolSet
from asearch.tools.client import CorpusClient
from asearch.tools.latency import latency_s
from asearch.tools.search import SearchTool
from schemas.commands import ToolReply
from schemas.events import Event, ToolRequested
from schemas.records import ToolResult

REPLY_TIMEOUT_S = 5.0
REPLY_TRIES = 4
"""After a broker's restart this actor may be connected again before the driver is."""
REPLY_RETRY_S = 0.5


class Tool(Actor):
    """One of any number of workers on the tool queue."""

    kind = "tool"
    queue = "tool"

    def __init__(self, context: Context, corpus_url: str, tools: ToolSet | None = None) -> None:
        """With `tools` these are called; else the tools are clients of the corpus server at `corpus_url`."""
        super().__init__(context)
        self._corpus_url = corpus_url
        self._tools = tools
        self._session: aiohttp.ClientSession | None = None
        self._n_calls = 0
        self._n_errors = 0
        self._n_busy = 0
        self._busy_s = 0.0

    @property
    def concurrency(self) -> int:
        """Calls under way at once."""
        return self.settings.tools.concurrency

    def gauges(self) -> dict[str, float]:
        """Calls so far, failed ones, calls under way, seconds in calls."""
        return {
            "n_calls": self._n_calls,
            "n_errors": self._n_errors,
            "n_busy": self._n_busy,
            "call_s": self._busy_s / max(1, self._n_calls),
        }

    async def start(self) -> None:
        """Open the HTTP session that all calls share."""
        if self._tools is not None:
            return
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=self.settings.tools.limits.n_concurrent))
        client = CorpusClient(
            self._corpus_url,
            self._session,
            sleep=self.platform.sleep,
            now_ns=lambda: int(self.platform.monotonic() * 1e9),
            limits=self.settings.tools.limits,
        )
        self._tools = ToolSet(SearchTool(client, self.settings.agent.topk), AccessTool(client))

    async def work(self) -> None:
        """The queue does the work."""
        await self.wait_stopping()

    async def drain(self) -> None:
        """Close the HTTP session."""
        if self._session is not None:
            await self._session.close()

    async def handle(self, event: Event, stored: Stored) -> None:
        """One call. The result is delivered before the fact is acknowledged; a driver that is gone asks again itself."""
        if not isinstance(event, ToolRequested):
            return
        started_s, started_ns = self.platform.monotonic(), self.platform.now_ns()
        self._n_busy += 1
        try:
            result = await self._call(event)
        finally:
            self._n_busy -= 1
        self._n_calls += 1
        self._n_errors += result.error is not None
        self._busy_s += self.platform.monotonic() - started_s
        if self.tracing.on:
            times = (started_ns, self.platform.now_ns())
            self.tracing.emit(tool_span(self.context.run, event, stored.traceparent, self.context.actor_id, times, result))
        await self.platform.fault("tool.called")
        await self._deliver_result(event, ToolReply(episode=event.episode, call=event.call, result=result), stored.traceparent)

    async def poisoned(self, stored: Stored) -> None:
        """The driver hears of a call that always fails as of an outage: it need not wait for its deadline."""
        event = stored.event
        if isinstance(event, ToolRequested):
            result = ToolResult(error="retryable", message="no tool actor could carry it out; see DEAD and their logs")
            reply = ToolReply(episode=event.episode, call=event.call, result=result)
            await self._deliver_result(event, reply, stored.traceparent)

    async def _deliver_result(self, event: ToolRequested, reply: ToolReply, traceparent: str | None) -> None:
        trouble = ""
        for n_tries in range(REPLY_TRIES):
            try:
                await self.bus.request(reply, subject=event.reply_to, timeout_s=REPLY_TIMEOUT_S, traceparent=traceparent)
                return
            except NoResponderError:
                trouble = "is gone"
                await self.platform.sleep(REPLY_RETRY_S * 2**n_tries)
            except RequestTimeoutError:
                trouble = "does not answer"
        self.log.warning(f"the driver that asked {trouble}", episode=event.episode, call=event.call, event_id=event.id)

    async def _call(self, event: ToolRequested) -> ToolResult:
        delay_s = latency_s(self.settings.tools.latency, event.task, event.member, event.turn)
        if delay_s > 0:
            await self.platform.sleep(delay_s)
        if self._tools is None:
            raise RuntimeError("the tools are not open: the actor has not started")
        return await self._tools.call(event.tool, event.argument, deadline_s=self.settings.tools.deadline_s)
