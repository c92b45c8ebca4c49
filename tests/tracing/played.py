"""Tracing in simulation: spans wait in a queue as in a process, reach the receiver in batches, and die with their process."""

import asyncio
from pathlib import Path

from actors.runtime.actor import Actor, Context
from actors.runtime.platform import Platform
from actors.runtime.tracing import Span, context_of
from schemas.commands import Message
from schemas.events import Event
from tests.sim.scenario import Scenario
from tests.sim.simulation import Simulation

BATCH_S = 5.0


class Queued:
    """Spans of one life, which `sent` gets every BATCH_S, or when they are flushed."""

    on = True

    def __init__(self, run: str, platform: Platform, sent: list[Span]) -> None:
        self._run, self._platform, self._sent = run, platform, sent
        self._queue: list[Span] = []
        self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            await self._platform.sleep(BATCH_S)
            await self.flush(0.0)

    def emit(self, span: Span) -> None:
        """Into the queue."""
        self._queue.append(span)

    def traceparent(self, message: Event | Message) -> str | None:
        """As the real one."""
        context = context_of(self._run, message)
        return None if context is None else context.traceparent()

    async def flush(self, timeout_s: float) -> bool:
        """To the receiver."""
        self._sent += self._queue
        self._queue = []
        return True

    async def close(self, timeout_s: float) -> None:
        """The last batch."""
        self._sender.cancel()
        await self.flush(timeout_s)


class TracedSimulation(Simulation):
    """A simulation whose actors trace. `sent` is what a receiver got."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        super().__init__(folder, scenario)
        self.sent: list[Span] = []
        self._queues: list[Queued] = []

    def _build(self, kind: str, context: Context) -> Actor:
        queued = Queued(context.run, context.platform, self.sent)
        actor = super()._build(kind, Context(**{**vars(context), "tracing": queued}))
        live = actor.run

        async def run(drain_s: float | None = None) -> None:
            try:
                await live(drain_s)
            finally:
                await queued.close(1.0)

        actor.run = run  # type: ignore[method-assign]
        return actor


def trees(spans: list[Span]) -> dict[int, dict[int, Span]]:
    """Spans by trace and identity. A span that was reported again must say the same."""
    found: dict[int, dict[int, Span]] = {}
    for span in spans:
        before = found.setdefault(span.context.trace_id, {}).setdefault(span.context.span_id, span)
        assert before == span, f"two spans share an identity: {before} and {span}"
    return found


def orphans(tree: dict[int, Span]) -> list[Span]:
    """Spans whose parent is not in their trace."""
    return [span for span in tree.values() if span.parent is not None and span.parent.span_id not in tree]
