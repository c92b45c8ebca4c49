"""Where things go: subjects and filters from the topology, with errors that name what is wrong."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from asearch.errors import BusError
from schemas import topology
from schemas.commands import Message
from schemas.events import Event


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where an event is stored; `scope` is the filter over all facts under its key."""

    stream: str
    subject: str
    scope: str


def route(run: str, event: Event, key: tuple[str, ...]) -> Route:
    """The route of an event. Raises BusError for a wrong key, an unusable id, or a type without a row."""
    if not event.id or not event.id.isprintable():
        raise BusError(f"{type(event).__name__} has an unusable id {event.id!r}")
    return _route(run, type(event), key)


@lru_cache(maxsize=4096)
def _route(run: str, event: type[Event], key: tuple[str, ...]) -> Route:
    try:
        stream = topology.fact_of(event).stream
        subject = topology.subject(run, event, *key)
    except KeyError:
        raise BusError(f"{event.__name__} is in no row of the topology") from None
    except ValueError as error:
        raise BusError(f"{event.__name__}: {error}") from None
    n_tokens = topology.stream_named(stream).key
    if len(key) != n_tokens:
        raise BusError(f"{event.__name__} takes a key of {n_tokens} tokens, not {len(key)}")
    return Route(stream, subject, topology.any_fact(run, stream, *key))


def read_filters(run: str, stream: str, events: Sequence[type[Event]], key: Sequence[str]) -> list[str]:
    """Subject filters of event types (none: all) under a key or a prefix of one (empty: all)."""
    tail = ".".join(key)
    if len(key) < topology.stream_named(stream).key:
        tail = f"{tail}.>" if tail else ">"
    if not events:
        return [f"asearch.{run}.{stream}.*.*.{tail}"] if key else []
    for event in events:
        if topology.fact_of(event).stream != stream:
            raise BusError(f"{event.__name__} is not in stream {stream}")
    return [topology.any_key(run, event).removesuffix(">") + tail for event in events]


def core_target(run: str, message: Message, key: str | None, subject: str | None) -> str:
    """The core subject of a message, from its key or as given."""
    if (key is None) == (subject is None):
        raise BusError(f"give {type(message).__name__} a key or a subject, and not both")
    return subject if subject is not None else topology.core_subject(run, type(message), key or "")
