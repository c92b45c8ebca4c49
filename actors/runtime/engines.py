"""Who can generate: the live engines by their heartbeats, and which of them an episode goes to."""

from dataclasses import dataclass

from actors.runtime.bus import Bus, Incoming
from actors.runtime.hearing import HearingClock
from actors.runtime.platform import Platform
from schemas.commands import Heartbeat
from schemas.records import Version

LOST_AFTER_S = 5.0
"""An engine that has not said for so long that it is alive, while others were heard, is not asked."""


@dataclass
class _Engine:
    seen_s: float
    state: str
    version: Version | None
    n_asked: int = 0


class EngineDirectory:
    """A driver's view of the engines. Requests of an episode stay where its prefix cache is; a new episode goes to the least
    loaded."""

    def __init__(self, platform: Platform) -> None:
        self._clock = HearingClock(platform)
        self._engines: dict[str, _Engine] = {}
        self._home: dict[str, str] = {}

    async def follow(self, bus: Bus) -> None:
        """Listen to heartbeats from now on."""
        await bus.subscribe(Heartbeat, ">", self._heard)

    async def _heard(self, incoming: Incoming) -> None:
        beat = incoming.message
        self._clock.heard()
        if isinstance(beat, Heartbeat) and beat.actor == "engine":
            engine = self._engines.setdefault(beat.actor_id, _Engine(0.0, beat.state, None))
            engine.seen_s, engine.state, engine.version = self._clock.now_s, beat.state, beat.version

    def is_alive(self, engine_id: str) -> bool:
        """Whether the engine said lately that it serves."""
        engine = self._engines.get(engine_id)
        return engine is not None and engine.state == "ready" and self._clock.now_s - engine.seen_s < LOST_AFTER_S

    def choose(self, episode: str) -> str | None:
        """The engine for the next request of an episode, None while there is none."""
        home = self._home.get(episode)
        if home is not None and self.is_alive(home):
            return home
        alive = [name for name in self._engines if self.is_alive(name)]
        if not alive:
            return None
        chosen = min(alive, key=lambda name: (self._engines[name].n_asked, name))
        self._home[episode] = chosen
        return chosen

    def asked(self, engine_id: str, change: int) -> None:
        """Count a request that begins (+1) or ends (-1)."""
        self._engines[engine_id].n_asked += change

    def forget(self, episode: str) -> None:
        """The episode is over."""
        self._home.pop(episode, None)
