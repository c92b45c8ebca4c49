"""Conditional appends and look-ups that messages which nobody can read do not stop."""

from typing import TypeVar

import msgspec

from actors.runtime.bus import APPEND_TIMEOUT_S, Bus, Scope, Stored
from asearch.errors import ConflictError, NotStoredError
from schemas.events import Event
from schemas.topology import fact_of

FactType = TypeVar("FactType", bound=Event)


async def append_past_malformed(bus: Bus, event: Event, *key: str, expected: int, scope: Scope = Scope.KEY) -> int:
    """Append after `expected`, passing over messages that came meanwhile if none of them is a fact; the new sequence.

    The id gets a suffix where a malformed message holds it. Raises ConflictError if a fact came in between, NotStoredError if
    malformed messages came in between again and again for APPEND_TIMEOUT_S, else as `append`.
    """
    offered, n_passes = event, 0
    deadline_s = bus.platform.monotonic() + APPEND_TIMEOUT_S
    while True:
        try:
            return await bus.append(offered, *key, expected=expected, scope=scope)
        except ConflictError as error:
            later = await _after(bus, fact_of(type(event)).stream, key, expected, scope)
            n_passes += 1
            if any(each.event is not None for each in later):
                raise
            if later:
                expected = later[-1].sequence
            elif n_passes > 1 and offered is event:
                # Nothing follows, and still it is refused: one of the messages that were passed over has the id.
                offered = msgspec.structs.replace(event, id=f"{event.id}-after-{expected}")
            else:
                raise
            if bus.platform.monotonic() > deadline_s:
                raise NotStoredError(f"malformed messages came in between {n_passes} times: {error}") from error


async def last_fact(bus: Bus, kind: type[FactType], *key: str) -> FactType | None:
    """The newest fact of one type under one key, whatever malformed messages follow it."""
    stored = await bus.get_last(kind, *key)
    if stored is not None and stored.event is None:
        under_key = await bus.read_key(fact_of(kind).stream, *key)
        stored = next((each for each in reversed(under_key) if isinstance(each.event, kind)), None)
    return stored.event if stored is not None and isinstance(stored.event, kind) else None


async def _after(bus: Bus, stream: str, key: tuple[str, ...], expected: int, scope: Scope) -> list[Stored]:
    return await bus.read_key(stream, *(key if scope is Scope.KEY else ()), after=expected)
