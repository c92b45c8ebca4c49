"""Room in the streams of a run: all of them refuse new messages at their bound, so admission stops before."""

from dataclasses import dataclass

from actors.runtime.bus import Bus, StreamInfo
from schemas.topology import TOPOLOGY

ADMIT_SHARE = 0.8
"""Share of a stream's bound up to which new work is admitted."""
NEVER_PURGED = ("plan", "policy")
"""Streams in which no room is ever made while the run goes on."""
_FREED = {
    "trace": "the recorder purges it up to the oldest open episode once the ended ones are archived",
    "outcomes": "the recorder purges it up to the checkpoint before the newest; lower checkpoint.every_steps",
    "blobs": "the recorder purges them up to the checkpoint before the newest; lower checkpoint.every_steps",
    "dead": "look at them with `asearch dead list`",
}


@dataclass(frozen=True)
class Pressure:
    """A stream that is over ADMIT_SHARE of its bound."""

    stream: str
    n_bytes: int
    max_bytes: int

    def __str__(self) -> str:
        share = f"{self.stream.upper()} is at {self.n_bytes / self.max_bytes:.0%} of its {self.max_bytes:,} bytes"
        return f"{share}; {_FREED[self.stream]}" if self.stream in _FREED else share

    @property
    def advice(self) -> str:
        """What ended the run, and what to do."""
        if self.stream in NEVER_PURGED:
            return f"{self}, and nothing is purged from it while a run goes on. Begin a new run, from this one's last weights"
        return f"{self}. Nothing was freed although no episode can be open any more: see the logs of recorder and trainer"


class Room:
    """Asks the broker how full the streams are."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def pressure(self) -> Pressure | None:
        """The fullest stream that is over its share; one that is never purged comes before others. Raises BusError."""
        found = [_pressure(await self._bus.stream_info(stream.name)) for stream in TOPOLOGY.streams]
        pressed = [each for each in found if each is not None]
        return max(pressed, key=lambda each: (each.stream in NEVER_PURGED, each.n_bytes / each.max_bytes), default=None)

    async def is_pressed(self, stream: str) -> bool:
        """Whether this stream is over its share."""
        return _pressure(await self._bus.stream_info(stream)) is not None


def _pressure(info: StreamInfo) -> Pressure | None:
    over = info.max_bytes > 0 and info.n_bytes >= ADMIT_SHARE * info.max_bytes
    return Pressure(info.name, info.n_bytes, info.max_bytes) if over else None
