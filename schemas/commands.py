"""Commands and status messages on core NATS: imperatives, replies to them, and heartbeats. None is stored."""

import msgspec

from schemas.records import Column, ToolResult, Version, VersionRun


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """A message that is not a fact: lost when nobody listens."""


class Generate(Message, tag="generate", frozen=True, kw_only=True):
    """Ask an engine for a generation; it streams `GenerationChunk`s to `reply_to`.

    `prompt` is a column of u4 ids. The engine answers once its policy step is at least `min_step`. `max_wait_ns` bounds the
    whole generation.
    """

    request: str
    episode: str
    prompt: Column
    stop: list[str]
    max_new_tokens: int
    temperature: float
    reply_to: str
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    min_step: int = 0
    max_wait_ns: int = 600_000_000_000


class Abort(Message, tag="abort", frozen=True, kw_only=True):
    """Stop a generation; nobody waits for the rest."""

    request: str


class CancelEpisodes(Message, tag="cancel_episodes", frozen=True, kw_only=True):
    """Give these episodes up: they have their outcome already."""

    episodes: list[str]


class GenerationChunk(Message, tag="generation_chunk", frozen=True, kw_only=True):
    """Tokens of a generation from `offset` on. The last chunk has `finish`; a failed one has `error`."""

    request: str
    offset: int
    columns: dict[str, Column]
    versions: list[VersionRun]
    engine: str
    finish: str | None = None
    error: str | None = None
    elapsed_ns: int = 0


class ToolReply(Message, tag="tool_reply", frozen=True, kw_only=True):
    """The result of a tool call, sent to the driver that asked; answered with `Received` once it is stored."""

    episode: str
    call: str
    result: ToolResult


class Received(Message, tag="received", frozen=True, kw_only=True):
    """The sender of this has stored, or does not need, what it was sent."""


class Heartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """An actor is alive. `state` is `starting`, `ready`, `draining` or `failed`; `waiting_for` says what it waits for."""

    actor: str
    actor_id: str
    pid: int
    at_ns: int
    state: str
    waiting_for: str = ""
    version: Version | None = None
    gauges: dict[str, float] = {}


class Lease(Message, tag="lease", frozen=True, kw_only=True):
    """The episodes a driver holds. A driver that has not said so for `lease_s` holds none."""

    driver: str
    at_ns: int
    episodes: list[str]


AnyMessage = Generate | Abort | CancelEpisodes | GenerationChunk | ToolReply | Received | Heartbeat | Lease
