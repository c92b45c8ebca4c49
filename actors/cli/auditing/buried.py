"""What lies in DEAD: messages that everybody has skipped are no problem of a run."""

from contextlib import aclosing

from actors.cli.auditing.problems import Problems
from actors.runtime.bus import Bus, Stored
from schemas.events import EventRefused


async def check_undecodable(bus: Bus, stream: str, undecodable: list[Stored], problems: Problems) -> None:
    """A message that is no fact is a problem unless it lies in DEAD. Raises BusError."""
    if not undecodable:
        return
    async with aclosing(bus.read("dead", events=(EventRefused,), follow=False)) as reader:
        buried = {stored.key async for stored in reader}
    for stored in undecodable:
        if (stream, str(stored.sequence)) not in buried:
            problems.add("undecodable", f"message {stored.sequence} of {stream.upper()}: {stored.malformed}")
