"""Commands and status messages on core NATS: imperatives, replies to them, and heartbeats. None is stored."""

import msgspec

from schemas.records import Column, Count, ToolResult, Version, VersionRun


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """A message that is not a fact: lost when nobody listens."""


class Generate(Message, tag="generate", frozen=True, kw_only=True):
    """Ask an engine for a generation; it streams `GenerationChunk`s to `reply_to`.

    `prompt` is a column of u4 ids. The engine answers once its policy step is at least `min_step`. `max_wait_ns` bounds the
    whole generation.
    """

    request: str
    """Id of this ask; asking again for the rest of a generation takes a new one."""
    episode: str
    prompt: Column
    stop: list[str]
    """Texts after which generation ends; the one that matched is kept in the tokens."""
    max_new_tokens: int
    """Tokens still wanted."""
    temperature: float
    reply_to: str
    """Core subject of the driver."""
    top_p: float = 1.0
    top_k: int = -1
    """-1: all tokens."""
    seed: int | None = None
    """None: the engine's own randomness."""
    min_step: int = 0
    max_wait_ns: int = 600_000_000_000
    driver: str = ""
    """Id of the driver: when its lease no longer names the episode, nobody waits for the tokens. Empty: never aborted so."""
    may_be_stale: bool = False
    """Whether an engine that is slow to come to `min_step` may answer under the version it has."""


class Abort(Message, tag="abort", frozen=True, kw_only=True):
    """Stop a generation; nobody waits for the rest."""

    request: str
    """As in `Generate`."""
    hand_over: bool = False
    """Another engine will go on: the tokens so far are still waited for, up to a chunk with `ask_elsewhere`."""


class CancelEpisodes(Message, tag="cancel_episodes", frozen=True, kw_only=True):
    """Give these episodes up: they have their outcome already."""

    episodes: list[str]
    """Ids; a driver skips those it does not hold."""


class GenerationChunk(Message, tag="generation_chunk", frozen=True, kw_only=True):
    """Tokens of a generation from `offset` on. The last chunk has `finish`, `ask_elsewhere` or `error`."""

    request: str
    """As in `Generate`."""
    offset: Count
    """Counted from the prompt's end in the `Generate` that it answers."""
    columns: dict[str, Column]
    """`ids` u4 and `logprobs` f4, both (n,)."""
    versions: list[VersionRun]
    """Counted from `offset`."""
    engine: str
    finish: str | None = None
    """`stop`, `length` or `abort`."""
    error: str | None = None
    elapsed_ns: int = 0
    """From the engine's acceptance of the request."""
    ask_elsewhere: bool = False
    """The engine generates no more of it, and has sent every token that it has: another one goes on from here."""


class ToolReply(Message, tag="tool_reply", frozen=True, kw_only=True):
    """The result of a tool call, sent to the driver that asked; answered with `Received` once it is stored."""

    episode: str
    call: str
    """As in `ToolRequested`."""
    result: ToolResult


class Received(Message, tag="received", frozen=True, kw_only=True):
    """The sender of this has stored, or does not need, what it was sent."""


class Heartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """An actor is alive. `state` is `starting`, `ready`, `draining` or `failed`; `waiting_for` says what it waits for."""

    actor: str
    """Kind of the actor."""
    actor_id: str
    """Which one of its kind."""
    pid: int
    at_ns: int
    state: str
    waiting_for: str = ""
    version: Version | None = None
    """The policy version it serves or trains, where it has one."""
    leaves_by_ns: int = 0
    """While `draining`: when it will be gone at the latest. It takes nothing new."""
    gauges: dict[str, float] = {}
    """Numbers by name, e.g. queue depths."""


class Lease(Message, tag="lease", frozen=True, kw_only=True):
    """The episodes a driver holds. A driver that has not said so for `lease_s` holds none."""

    driver: str
    """Id of the driver."""
    at_ns: int
    episodes: list[str]
    """Ids of all episodes that it holds now."""


class AddEngines(Message, tag="add_engines", frozen=True, kw_only=True):
    """Start so many more engines; answered with `EnginesChanged`."""

    n: Count
    """How many."""


class RemoveEngines(Message, tag="remove_engines", frozen=True, kw_only=True):
    """End engines and do not start them again; answered with `EnginesChanged`. Either ids or a number of them is given."""

    engines: list[str] = []
    """Ids."""
    n: Count = 0
    """How many, the youngest first."""
    now: bool = False
    """SIGKILL; else SIGTERM, upon which an engine hands its requests over."""


class EnginesChanged(Message, tag="engines_changed", frozen=True, kw_only=True):
    """What became of `AddEngines` or `RemoveEngines`."""

    changed: list[str]
    """Ids of the engines that were added or removed."""
    engines: list[str]
    """Ids of all engines that the run keeps alive now."""
    error: str = ""
    """Why nothing was changed."""


AnyMessage = (
    Generate
    | Abort
    | CancelEpisodes
    | GenerationChunk
    | ToolReply
    | Received
    | Heartbeat
    | Lease
    | AddEngines
    | RemoveEngines
    | EnginesChanged
)
