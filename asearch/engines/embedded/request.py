"""One generation request and its state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens of one request are chosen and when it ends."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    """0 is no limit."""
    stop: tuple[bytes, ...]
    stop_ids: frozenset[int]
    min_new_tokens: int
    seed: int

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the model's own distribution."""
        return self.temperature == 1.0 and self.top_p >= 1.0 and self.top_k == 0 and self.min_new_tokens == 0


@dataclass(slots=True, eq=False)
class Request:
    """Written by the scheduler's thread, except the last group of fields.

    `output`, `logprobs` and `versions` only grow, so the event loop may read their first `n_ready` entries.
    """

    rid: str
    prompt: list[int]
    sampling: Sampling
    stream: bool
    arrived_s: float
    output: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    versions: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """(weight version, index of the first output token that it made)."""
    tail: bytes = b""
    """End of the text so far, kept while stop strings are looked for."""
    row: int = -1
    n_fed: int = 0
    """Tokens of prompt and output whose keys and values are in the row."""
    n_target: int = 0
    """Tokens to feed before the next one can be sampled, as of the last admission."""
    n_cached: int = 0
    n_retractions: int = 0
    n_sent: int = 0
    sent_s: float = 0.0
    """When tokens were streamed last, or it was admitted."""

    n_ready: int = 0
    finish: dict[str, Any] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def n_reserved(self) -> int:
        """Tokens that the request may come to hold."""
        return len(self.prompt) + self.sampling.max_new_tokens

    def advance(self, n_ready: int, finish: dict[str, Any] | None) -> None:
        """Tells the request's handler, on the event loop, that tokens are ready or that it has ended."""
        self.n_ready = n_ready
        if finish is not None:
            self.finish = finish
        self.changed.set()


def stopped_by(request: Request, token: int, bytes_of: Callable[[int], bytes]) -> str | None:
    """The stop string that the newest token completes, if any; to be called once for every token, in order."""
    stop = request.sampling.stop
    new = bytes_of(token)
    text = request.tail + new
    request.tail = text[-max(map(len, stop)) :]
    found = [(text.find(item), item) for item in stop if item in text]
    return min(found)[1].decode() if found else None
