"""Appends of those who cannot go on without them: they wait while the broker cannot store, however long that takes."""

from collections.abc import Callable

from actors.runtime.appends import append_past_malformed
from actors.runtime.bus import Bus, Scope
from asearch.errors import NotStoredError, StreamFullError
from schemas.events import Event

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0


async def append_patiently(
    bus: Bus,
    event: Event,
    *key: str,
    expected: int,
    scope: Scope = Scope.KEY,
    waits_for: Callable[[str], None],
) -> int:
    """As `append_past_malformed`, but begun again, with growing pauses, while the stream is full or nothing is stored.

    The append is conditional, so that it is stored once, however often it is tried. `waits_for` hears why it waits, and "" when
    it is stored.
    """
    wait_s = FIRST_WAIT_S
    while True:
        try:
            sequence = await append_past_malformed(bus, event, *key, expected=expected, scope=scope)
        except (StreamFullError, NotStoredError) as error:
            waits_for(str(error))
            await bus.platform.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            continue
        if wait_s > FIRST_WAIT_S:
            waits_for("")
        return sequence
