"""DEAD: refused bytes are kept there with the reason, once per message, whoever refuses them and however often."""

import hashlib
import logging
from contextlib import suppress

import msgspec

from actors.runtime.bus import Bus, Stored
from asearch.errors import BusError, ConflictError
from schemas.events import Event, EventRefused
from schemas.topology import MAX_PAYLOAD_BYTES

MAX_REASON_CHARS = 1000
MAX_KEPT_BYTES = MAX_PAYLOAD_BYTES - (16 << 10)
"""Of a larger message only the beginning is kept: the broker takes no message that is longer than the one it tells of."""
TIMEOUT_S = 10.0
MAX_TRIES = 5

log = logging.getLogger(__name__)


async def bury(bus: Bus, stored: Stored, actor: str, reason: str) -> bool:
    """Keep a refused message in DEAD unless it is there already; False, and an error in the log, if DEAD does not take it.

    Never raises BusError: a message that cannot be kept must not hold up its neighbours.
    """
    stream = stored.stream.rsplit("-", 1)[-1]
    refused = EventRefused(
        id=f"dead-{stream}-{stored.sequence}",
        at_ns=bus.platform.now_ns(),
        stream=stream,
        subject=stored.subject,
        sequence=stored.sequence,
        actor=actor,
        reason=reason[:MAX_REASON_CHARS],
        data=stored.data[:MAX_KEPT_BYTES],
        size_bytes=len(stored.data),
    )
    try:
        await bus.append(refused, stream, str(stored.sequence), expected=0, timeout_s=TIMEOUT_S)
    except ConflictError:
        return await _bury_beside(bus, refused)
    except BusError as error:
        return _lost(refused, error)
    return True


async def _bury_beside(bus: Bus, refused: EventRefused) -> bool:
    """A broker that lost the tail of a stream gives its sequences out again: DEAD may hold another message of this one."""
    key = (refused.stream, str(refused.sequence))
    digest = hashlib.blake2b(refused.data + refused.subject.encode(), digest_size=6).hexdigest()
    refused = msgspec.structs.replace(refused, id=f"{refused.id}-{digest}")
    try:
        for _ in range(MAX_TRIES):
            there = await bus.read_key("dead", *key)
            if any(_is_of(refused, each.event) for each in there):
                return True
            with suppress(ConflictError):
                await bus.append(refused, *key, expected=there[-1].sequence if there else 0, timeout_s=TIMEOUT_S)
                return True
    except BusError as error:
        return _lost(refused, error)
    return _lost(refused, f"others wrote there {MAX_TRIES} times")


def _is_of(refused: EventRefused, event: Event | None) -> bool:
    return isinstance(event, EventRefused) and (event.subject, event.size_bytes, event.data) == (
        refused.subject,
        refused.size_bytes,
        refused.data,
    )


def _lost(refused: EventRefused, why: object) -> bool:
    where = (refused.sequence, refused.stream)
    log.error("message %d of %s (%s) is refused, and DEAD does not take it: %s", *where, refused.reason, why)
    return False
