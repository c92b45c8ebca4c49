"""A generation that a test follows while it goes on."""

import asyncio
from typing import Any

from asearch.engines.client import EngineClient, GeneratedChunk, VersionSpan

PROMPT = list(range(3, 40))
LONG: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 400, "ignore_eos": True}


class Episode:
    """Follows one request; parameters are those of a long sampled one unless given."""

    timeout_s = 60.0

    def __init__(self, client: EngineClient, prompt: list[int], rid: str, **params: Any) -> None:
        self.prompt, self.rid = prompt, rid
        self.chunks: list[GeneratedChunk] = []
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.task = asyncio.create_task(self._run(client, LONG | params))

    async def _run(self, client: EngineClient, params: dict[str, Any]) -> None:
        async for chunk in client.generate(self.prompt, params, rid=self.rid, timeout_s=self.timeout_s):
            assert chunk.offset == len(self.ids)
            self.chunks.append(chunk)
            self.ids += chunk.ids
            self.logprobs += chunk.logprobs

    async def reached(self, n_tokens: int) -> None:
        while len(self.ids) < n_tokens:
            assert not self.task.done(), self.task
            await asyncio.sleep(0.001)

    @property
    def finish(self) -> str | None:
        return self.chunks[-1].finish

    def spans(self) -> list[VersionSpan]:
        """Joined over chunks."""
        joined: list[VersionSpan] = []
        for span in (span for chunk in self.chunks for span in chunk.versions):
            if joined and joined[-1].version == span.version:
                joined[-1] = VersionSpan(span.version, joined[-1].start, span.end)
            else:
                joined.append(span)
        return joined
