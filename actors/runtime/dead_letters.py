"""DEAD: refused bytes are kept there with the reason, once per message, whoever refuses them and however often."""

import logging

from actors.runtime.bus import Bus, Stored
from asearch.errors import BusError, ConflictError
from schemas.events import EventRefused
from schemas.topology import MAX_PAYLOAD_BYTES

MAX_REASON_CHARS = 1000
MAX_KEPT_BYTES = MAX_PAYLOAD_BYTES - (16 << 10)
"""Of a larger message only the beginning is kept: the broker takes no message that is longer than the one it tells of."""
TIMEOUT_S = 10.0

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
        return True
    except BusError as error:
        log.error("message %d of %s (%s) is refused, and DEAD does not take it: %s", stored.sequence, stream, reason, error)
        return False
    return True
