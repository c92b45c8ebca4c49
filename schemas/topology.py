"""The one table of streams, subjects, durable consumers and rights.

Subjects are `asearch.{run}.{stream}.{noun}.{verb}.{key}`. Stream creation, the broker's permissions and the generated
documents all come from here.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

from schemas import commands, events

MAX_PAYLOAD_BYTES = 8 << 20
INLINE_BYTES = 256 << 10
CHUNK_BYTES = 1 << 20

_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True)
class Stream:
    """A stream of one run. `key` is how many subject tokens the key has; `async_writes` trades a power cut for speed.

    `purged_by` are the actors that may delete its messages.
    """

    name: str
    holds: str
    max_bytes: int
    key: int = 1
    async_writes: bool = False
    purged_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """Where an event goes: stream, noun and verb; who may write it; what the tokens of its key are.

    `operator` stands for a person at the command line, who may do everything.

    A `conditional` append compares the last sequence, and its writer may have to read the stream back.
    """

    event: type[events.Event]
    stream: str
    noun: str
    verb: str
    writers: tuple[str, ...]
    keyed_by: tuple[str, ...] = ("episode",)
    conditional: bool = True


@dataclass(frozen=True)
class Consumer:
    """A durable, explicitly acknowledged queue over the facts of one kind, shared by all actors of one kind."""

    name: str
    stream: str
    actor: str
    events: tuple[type[events.Event], ...]
    ack_wait_s: float = 30.0
    max_ack_pending: int = 512


@dataclass(frozen=True)
class Reader:
    """A right to read facts of a stream; `only` empty means all of them.

    An `in_order` reader folds the stream through consumers of its own. Others look facts up under a key they know:
    with `only`, the last fact of such a type; without, any fact of the stream.
    """

    actor: str
    stream: str
    only: tuple[type[events.Event], ...] = ()
    in_order: bool = True


@dataclass(frozen=True)
class CoreSubject:
    """A subject without a stream. `reply` is what a receiver answers to a sender that waits.

    `supervisor` stands for what keeps the actors of a run on one machine alive; it connects as an operator.
    """

    noun: str
    verb: str
    message: type[commands.Message]
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    keyed_by: str
    reply: type[commands.Message] | None = None


@dataclass(frozen=True)
class Topology:
    """All of it."""

    streams: tuple[Stream, ...]
    facts: tuple[Fact, ...]
    consumers: tuple[Consumer, ...]
    readers: tuple[Reader, ...]
    core: tuple[CoreSubject, ...]
    actors: tuple[str, ...] = field(default=("scheduler", "driver", "engine", "tool", "grader", "trainer", "recorder", "viewer"))


GIB = 1 << 30

TOPOLOGY = Topology(
    streams=(
        Stream("plan", "what was asked for; its fold with outcomes and policy is the scheduler's state", GIB),
        Stream("trace", "every fact of every episode", 8 * GIB, async_writes=True, purged_by=("recorder",)),
        Stream("outcomes", "exactly one outcome per episode", 2 * GIB, purged_by=("recorder",)),
        Stream("policy", "the trainer's journal", GIB),
        Stream("blobs", "large payloads in chunks", 16 * GIB, key=3, purged_by=("recorder",)),
        Stream("dead", "refused bytes with the reason", GIB, key=2),
    ),
    facts=(
        Fact(events.RunStarted, "plan", "run", "started", ("scheduler",), ("run",)),
        Fact(events.GroupAdmitted, "plan", "group", "admitted", ("scheduler",), ("group",)),
        Fact(events.EpisodeRequested, "plan", "episode", "requested", ("scheduler",)),
        Fact(events.AnswerKeyStored, "plan", "key", "stored", ("scheduler",), ("task",)),
        Fact(events.PlanFolded, "plan", "plan", "folded", ("scheduler",), ("run",)),
        Fact(events.RunEnded, "plan", "run", "ended", ("scheduler",), ("run",)),
        Fact(events.EpisodeTaken, "trace", "episode", "taken", ("driver",)),
        Fact(events.TokensGenerated, "trace", "tokens", "generated", ("driver",)),
        Fact(events.ToolRequested, "trace", "tool", "requested", ("driver",)),
        Fact(events.ToolReturned, "trace", "tool", "returned", ("driver",)),
        Fact(events.DeadlineNeared, "trace", "deadline", "neared", ("driver",)),
        Fact(events.EpisodeFinished, "trace", "episode", "finished", ("driver",)),
        Fact(events.EpisodeGraded, "outcomes", "episode", "graded", ("grader",)),
        Fact(events.EpisodeDropped, "outcomes", "episode", "dropped", ("driver", "scheduler", "grader")),
        Fact(events.EpisodeDead, "outcomes", "episode", "dead", ("driver", "scheduler", "grader")),
        Fact(events.TrainerClaimed, "policy", "trainer", "claimed", ("trainer",), ("model",)),
        Fact(events.StepTrained, "policy", "step", "trained", ("trainer",), ("model",)),
        Fact(events.PolicyPublished, "policy", "version", "published", ("trainer",), ("model",)),
        Fact(events.CheckpointCommitted, "policy", "checkpoint", "committed", ("trainer",), ("model",)),
        Fact(events.BlobStored, "blobs", "chunk", "stored", ("driver", "trainer"), ("episode", "hash", "index")),
        Fact(
            events.EventRefused,
            "dead",
            "event",
            "refused",
            ("scheduler", "driver", "engine", "tool", "grader", "trainer", "recorder"),
            ("stream", "sequence"),
        ),
        Fact(events.EventRequeued, "dead", "event", "requeued", ("operator",), ("stream", "sequence"), conditional=False),
    ),
    consumers=(
        Consumer("driver", "plan", "driver", (events.EpisodeRequested,), max_ack_pending=1024),
        Consumer("tool", "trace", "tool", (events.ToolRequested,), max_ack_pending=1024),
        Consumer("grader", "trace", "grader", (events.EpisodeFinished,), max_ack_pending=256),
    ),
    readers=(
        Reader("scheduler", "plan"),
        Reader("scheduler", "outcomes"),
        Reader("scheduler", "policy"),
        Reader("driver", "plan", (events.PlanFolded,), in_order=False),
        Reader("driver", "trace", in_order=False),
        Reader("driver", "blobs", in_order=False),
        Reader("driver", "outcomes", in_order=False),
        Reader("engine", "policy"),
        Reader("grader", "plan", in_order=False),
        Reader("grader", "blobs", in_order=False),
        Reader("trainer", "outcomes"),
        Reader("trainer", "policy"),
        Reader("trainer", "blobs", in_order=False),
        Reader("recorder", "plan", (events.EpisodeRequested, events.PlanFolded), in_order=False),
        Reader("recorder", "trace"),
        Reader("recorder", "outcomes"),
        Reader("recorder", "policy"),
        Reader("recorder", "blobs"),
        Reader("viewer", "plan"),
        Reader("viewer", "trace"),
        Reader("viewer", "outcomes"),
        Reader("viewer", "policy"),
        Reader("viewer", "blobs"),
        Reader("viewer", "dead"),
    ),
    core=(
        CoreSubject("engine", "generate", commands.Generate, ("driver",), ("engine",), "engine"),
        CoreSubject("engine", "abort", commands.Abort, ("driver",), ("engine",), "engine"),
        CoreSubject("driver", "stream", commands.GenerationChunk, ("engine",), ("driver",), "driver"),
        CoreSubject("driver", "reply", commands.ToolReply, ("tool",), ("driver",), "driver", commands.Received),
        CoreSubject("driver", "cancel", commands.CancelEpisodes, ("scheduler",), ("driver",), "drivers"),
        CoreSubject("run", "add", commands.AddEngines, ("operator",), ("supervisor",), "run", commands.EnginesChanged),
        CoreSubject("run", "remove", commands.RemoveEngines, ("operator",), ("supervisor",), "run", commands.EnginesChanged),
        CoreSubject("driver", "lease", commands.Lease, ("driver",), ("scheduler", "engine", "viewer"), "driver"),
        CoreSubject(
            "actor",
            "heartbeat",
            commands.Heartbeat,
            ("scheduler", "driver", "engine", "tool", "grader", "trainer", "recorder", "viewer"),
            ("scheduler", "driver", "engine", "trainer", "viewer"),
            "actor",
        ),
    ),
)

_FACT_BY_TYPE = {fact.event: fact for fact in TOPOLOGY.facts}


_KEY_FIELDS: dict[tuple[str, ...], Callable[[Any], str]] = {
    ("task",): lambda event: key_token(event.key.task),
    ("episode", "hash", "index"): lambda event: f"{event.episode}.{event.hash}.{event.index}",
    ("stream", "sequence"): lambda event: f"{event.stream.rpartition('-')[2]}.{event.sequence}",
}
"""How the key follows from an event; one of a single token is the field of that name."""


_FACT_BY_ROW = {(fact.stream, fact.noun, fact.verb): fact for fact in TOPOLOGY.facts}
_KEY_OF = {fact.event: _KEY_FIELDS.get(fact.keyed_by) or attrgetter(fact.keyed_by[0]) for fact in TOPOLOGY.facts}


@lru_cache(maxsize=1 << 14)
def _named_by(subject: str) -> tuple[type[events.Event] | None, Callable[[Any], str], str]:
    """The event type that a subject names, how its key follows from an event, and the key; None where it names none."""
    tokens = subject.split(".", 5)
    fact = _FACT_BY_ROW.get((tokens[2], tokens[3], tokens[4])) if len(tokens) == 6 else None
    if fact is None or tokens[5].count(".") + 1 != len(fact.keyed_by):
        return None, str, ""
    return fact.event, _KEY_OF[fact.event], tokens[5]


_CORE_BY_TYPE = {subject.message: subject for subject in TOPOLOGY.core}
_CONSUMER_BY_NAME = {consumer.name: consumer for consumer in TOPOLOGY.consumers}
_STREAM_BY_NAME = {stream.name: stream for stream in TOPOLOGY.streams}


def is_key(text: str) -> bool:
    """Whether `text` can be a token of a subject's key."""
    return bool(_KEY.match(text))


def key_token(text: str) -> str:
    """A token for a key that comes from outside: the text itself where it can be one, else a name made of its hash."""
    if len(text) <= 64 and is_key(text):
        return text
    data = text.encode(errors="surrogatepass")
    return f"x{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def fact_of(event: type[events.Event]) -> Fact:
    """The row of an event type. Raises KeyError for a type that is not in the table."""
    return _FACT_BY_TYPE[event]


def stream_named(name: str) -> Stream:
    """The row of a stream."""
    return _STREAM_BY_NAME[name]


def consumer_named(name: str) -> Consumer:
    """The row of a durable consumer."""
    return _CONSUMER_BY_NAME[name]


def broker_stream(run: str, stream: str) -> str:
    """The name under which the broker knows a run's stream."""
    return f"asearch-{run}-{stream}"


def subject(run: str, event: type[events.Event], *key: str) -> str:
    """The subject of an event with this key. Raises ValueError for a key that is not made of letters, digits, `-`, `_`."""
    fact = _FACT_BY_TYPE[event]
    for token in key:
        if not is_key(token):
            raise ValueError(f"{token!r} cannot be part of a subject: use letters, digits, '-' and '_'")
    return f"asearch.{run}.{fact.stream}.{fact.noun}.{fact.verb}.{'.'.join(key)}"


def step_tokens_key(model: str, lineage: int, step: int) -> str:
    """The name under which the tokens of an update lie in BLOBS, where payloads of episodes have the episode's."""
    return f"step-{model}-{lineage}-{step}"


def is_in_place(subject: str, event: events.Event) -> bool:
    """Whether an event is of the type that its subject names, and says the same key as the subject."""
    named, key_of, key = _named_by(subject)
    return event.__class__ is named and key_of(event) == key


def any_key(run: str, event: type[events.Event]) -> str:
    """The filter that matches an event type under every key."""
    fact = _FACT_BY_TYPE[event]
    return f"asearch.{run}.{fact.stream}.{fact.noun}.{fact.verb}.>"


def any_fact(run: str, stream: str, *key: str) -> str:
    """The filter that matches every fact of a stream under one key: the scope of a conditional append."""
    return f"asearch.{run}.{stream}.*.*.{'.'.join(key) if key else '>'}"


def any_message(run: str, stream: str) -> str:
    """The filter that matches every message of a stream, also one whose subject no fact has."""
    return f"asearch.{run}.{stream}.>"


def core_subject(run: str, message: type[commands.Message], key: str) -> str:
    """The core subject of a message with this key."""
    row = _CORE_BY_TYPE[message]
    return f"asearch.{run}.core.{row.noun}.{row.verb}.{key}"
