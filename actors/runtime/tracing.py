"""The tracing port: spans of what actors do, and the identities by which they find one another across processes.

Every episode is one trace, every training step one of its own. Identities are hashes of names that all actors know, so that a
child in another process, or after a takeover, knows its parent without asking, and a line of a log knows its trace.

Spans that others hang from (episode, turn, chat) are functions of recorded facts and come from the recorder, which sees every
episode whatever died (`actors.runtime.episode_spans`). What an actor says of its own work (`actors.runtime.work_spans`) is a
leaf: one that is lost with its process leaves no orphan. Off by default: `NO_TRACING` does nothing, and imports nothing.
"""

import re
from typing import Literal, NamedTuple, Protocol

import msgspec
import xxhash

from asearch.traces.names import trace_id_of
from schemas.commands import Generate, GenerationChunk, Message, ToolReply
from schemas.events import (
    DeadlineNeared,
    EpisodeFinished,
    EpisodeRequested,
    EpisodeTaken,
    Event,
    Outcome,
    StepTrained,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
)
from schemas.records import Version

Value = str | int | float | bool | list[str]
Attributes = dict[str, Value]
SpanKind = Literal["internal", "client", "server", "producer", "consumer"]
PROVIDER = "asearch"
"""`gen_ai.provider.name` of a policy that is trained here."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?:-.*)?\Z")


class SpanContext(NamedTuple):
    """Where a span stands: its trace and its own identity, both nonzero."""

    trace_id: int
    span_id: int

    def traceparent(self, *, sampled: bool = True) -> str:
        """The W3C header that names it."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{'01' if sampled else '00'}"


class SpanLink(NamedTuple):
    """A span of another trace that this one has to do with."""

    context: SpanContext
    attributes: Attributes


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span that has ended. Times are nanoseconds since the epoch."""

    name: str
    context: SpanContext
    parent: SpanContext | None = None
    """None: the root of its trace."""
    start_ns: int
    end_ns: int
    kind: SpanKind = "internal"
    attributes: Attributes = {}
    links: list[SpanLink] = []
    error: str | None = None
    """What went wrong; None where nothing did."""
    actor: str | None = None
    """Id of the actor whose work it is, where that is not the one that reports it."""


class Tracing(Protocol):
    """Where spans go. No method raises, and none waits but `flush` and `close`, which have a deadline."""

    on: bool
    """Whether anybody looks: actors build no span, and send no header, where it is False."""

    def emit(self, span: Span) -> None:
        """Report a span; what cannot be kept is dropped."""
        ...

    def traceparent(self, message: Event | Message) -> str | None:
        """The header for what is said."""
        ...

    async def flush(self, timeout_s: float) -> bool:
        """Send what was reported; whether that came to an end in time."""
        ...

    async def close(self, timeout_s: float) -> None:
        """Send what was reported as far as the time allows, and stop."""
        ...


class NoTracing:
    """Tracing that is off."""

    on = False

    def emit(self, span: Span) -> None:
        """Nothing."""

    def traceparent(self, message: Event | Message) -> str | None:
        """None."""
        return None

    async def flush(self, timeout_s: float) -> bool:
        """Nothing."""
        return True

    async def close(self, timeout_s: float) -> None:
        """Nothing."""


NO_TRACING: Tracing = NoTracing()


# --- identities -------------------------------------------------------------------------------------------------------


def trace_id(run: str, episode: str) -> int:
    """The trace of an episode, as a number."""
    return int(trace_id_of(run, episode), 16) or 1


def span_id(*names: str | int) -> int:
    """The identity of a span, from the names that set it apart within its trace: xxh3-64."""
    return xxhash.xxh3_64_intdigest("/".join(map(str, names)).encode()) or 1


def episode_context(run: str, episode: str) -> SpanContext:
    """The root span of an episode's trace."""
    return SpanContext(trace_id(run, episode), span_id(episode, "episode"))


def turn_context(run: str, episode: str, turn: int) -> SpanContext:
    """The span of one turn."""
    return SpanContext(trace_id(run, episode), span_id(episode, "turn", turn))


def chat_context(run: str, episode: str, request: str) -> SpanContext:
    """The span of one generation, by the id that it keeps however often it is asked for."""
    return SpanContext(trace_id(run, episode), span_id(episode, "chat", request))


def step_context(run: str, model: str, version: Version) -> SpanContext:
    """The root, and only span, of a training step's trace; `version` is the one that the step starts from."""
    name = f"{model}@{version}"
    return SpanContext(trace_id(run, f"step/{name}"), span_id("step", name))


def context_of(run: str, message: Event | Message) -> SpanContext | None:
    """The span under which something is said; None for what belongs to no trace."""
    match message:
        case TokensGenerated():
            return chat_context(run, message.episode, message.request)
        case Generate():
            return chat_context(run, message.episode, asked_for(message.request))
        case GenerationChunk():
            call = asked_for(message.request)
            return chat_context(run, call.partition(":")[0], call)
        case ToolRequested() | ToolReturned():
            return turn_context(run, message.episode, message.turn)
        case EpisodeRequested() | EpisodeTaken() | EpisodeFinished() | DeadlineNeared() | Outcome() | ToolReply():
            return episode_context(run, message.episode)
        case StepTrained():
            return step_context(run, message.model, Version(lineage=message.lineage, step=message.step))
        case _:
            return None


def asked_for(request: str) -> str:
    """The id of the generation that an engine's request `{generation}/{driver's life}/{number}` is for."""
    return request.partition("/")[0]


def parent_of(traceparent: str | None, otherwise: SpanContext) -> SpanContext:
    """The span that a header names; the other one where there is no header or it cannot be read."""
    found = _TRACEPARENT.match(traceparent) if traceparent else None
    return SpanContext(int(found[1], 16), int(found[2], 16)) if found else otherwise
