"""Who can generate: the live engines by their heartbeats, and the places in them that episodes wait for."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from actors.runtime.bus import Bus, Incoming
from actors.runtime.hearing import HearingClock
from actors.runtime.platform import Platform
from actors.runtime.routing import EngineLoad, Routing
from asearch.configuration.engine import EngineSettings
from asearch.errors import EngineError
from schemas.commands import Heartbeat
from schemas.records import Version

LOST_AFTER_S = 5.0
"""An engine that has not said for so long that it is alive, while others were heard, is not asked."""
LOOK_S = 0.5
"""How often whoever waits looks whether an engine may still come."""


@dataclass
class _Engine:
    seen_s: float
    state: str
    version: Version | None
    life: int
    load: EngineLoad


@dataclass
class _Waiting:
    episode: str
    min_step: int
    place: "asyncio.Future[Place]"


@dataclass(frozen=True)
class Place:
    """A request that an engine may be asked now."""

    engine: str
    life: int
    """The process of the engine: another one knows nothing of the request."""


class EngineDirectory:
    """A driver's view of the engines. Those that wait for a place get one in the order in which they came."""

    def __init__(self, platform: Platform, settings: EngineSettings, wait_s: float) -> None:
        """`wait_s`: how long an episode waits while no engine serves and none is about to."""
        self._clock = HearingClock(platform)
        self._settings = settings
        self._wait_s = wait_s
        self._engines: dict[str, _Engine] = {}
        self._routing = Routing()
        self._waiting: deque[_Waiting] = deque()
        self._hopeful_s = 0.0
        self.on_outage: Callable[[bool], None] = lambda _: None
        """Told when episodes begin to wait because no engine serves, and when one does again."""
        self._is_out = False

    async def follow(self, bus: Bus) -> None:
        """Listen to heartbeats from now on."""
        await bus.subscribe(Heartbeat, ">", self._heard)

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def n_moved(self) -> int:
        """Episodes that left an engine that still served."""
        return self._routing.n_moved

    async def _heard(self, incoming: Incoming) -> None:
        beat = incoming.message
        self._clock.heard()
        if isinstance(beat, Heartbeat) and beat.actor == "engine":
            self._take(beat)
        self._grant()

    def _take(self, beat: Heartbeat) -> None:
        engine = self._engines.get(beat.actor_id)
        if engine is None:
            self._forget_the_gone()
            engine = self._engines[beat.actor_id] = _Engine(0.0, beat.state, None, beat.pid, self._unknown_load())
        engine.seen_s, engine.state, engine.version, engine.life = self._clock.now_s, beat.state, beat.version, beat.pid
        if beat.state in ("starting", "ready"):
            self._hopeful_s = self._clock.now_s
        load = engine.load
        load.places = max(1, int(beat.gauges.get("n_places", self._settings.max_running_requests)))
        load.max_pending = max_pending_of(self._settings, load.places)
        load.step = beat.version.step if beat.version is not None else 0
        load.reported(int(beat.gauges.get("n_running", 0)))

    def _forget_the_gone(self) -> None:
        for name, engine in list(self._engines.items()):
            if not self.is_alive(name) and engine.load.n_asked == 0 and self._clock.now_s - engine.seen_s > LOST_AFTER_S:
                del self._engines[name]

    def _unknown_load(self) -> EngineLoad:
        places = self._settings.max_running_requests
        return EngineLoad(places, max_pending_of(self._settings, places))

    def is_alive(self, engine_id: str) -> bool:
        """Whether the engine said lately that it serves."""
        return self._is_heard(engine_id, "ready")

    def has_lost(self, place: Place) -> bool:
        """Whether nothing more comes of a request: the engine is silent, or has begun a new life."""
        is_there = self._is_heard(place.engine, "ready", "draining")
        return not is_there or self._engines[place.engine].life != place.life

    def is_draining(self, place: Place) -> bool:
        """Whether the engine is about to leave: it hands its requests over."""
        return self._is_heard(place.engine, "draining")

    def _is_heard(self, engine_id: str, *states: str) -> bool:
        engine = self._engines.get(engine_id)
        return engine is not None and engine.state in states and self._clock.now_s - engine.seen_s < LOST_AFTER_S

    def _serving(self) -> dict[str, EngineLoad]:
        return {name: engine.load for name, engine in self._engines.items() if self.is_alive(name)}

    # --- places ---

    @asynccontextmanager
    async def place(self, episode: str, min_step: int) -> AsyncGenerator[Place]:
        """A place for one request, as soon as an engine may be asked. Raises EngineError when none serves for `wait_s`."""
        place = await self._wait(episode, min_step)
        try:
            yield place
        finally:
            self._asked(place.engine, -1)
            self._grant()

    def should_leave(self, place: Place) -> bool:
        """Whether a request that has brought no token does better elsewhere."""
        return self._routing.should_leave(place.engine, self._serving())

    @asynccontextmanager
    async def leaving(self, place: Place) -> AsyncGenerator[None]:
        """While an engine hands a request over it counts no more."""
        load = self._engines[place.engine].load
        load.n_leaving += 1
        try:
            yield
        finally:
            load.n_leaving -= 1

    def forget(self, episode: str) -> None:
        """The episode is over."""
        self._routing.forget(episode)

    async def _wait(self, episode: str, min_step: int) -> Place:
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(episode, min_step, future)
        self._waiting.append(waiting)
        self._grant()
        since_s = self._clock.now_s
        try:
            while not future.done():
                await asyncio.wait({future}, timeout=LOOK_S)
                self._grant()
                if not future.done() and self._clock.now_s - max(self._hopeful_s, since_s) > self._wait_s:
                    raise EngineError(f"no engine was ready for {self._wait_s:g} s; see the engines' logs in the run's folder")
        except BaseException:
            if future.done() and not future.cancelled():
                self._asked(future.result().engine, -1)
            else:
                self._waiting.remove(waiting)
            self._grant()
            raise
        return future.result()

    def _grant(self) -> None:
        """Give places to those that wait, in order, as far as there are any."""
        serving = self._serving()
        self._say_outage(bool(self._waiting) and not serving)
        while self._waiting:
            first = self._waiting[0]
            name = self._routing.choose(first.episode, serving, first.min_step)
            if name is None:
                return
            self._waiting.popleft()
            self._asked(name, +1)
            first.place.set_result(Place(name, self._engines[name].life))

    def _asked(self, engine_id: str, change: int) -> None:
        self._engines[engine_id].load.n_asked += change

    def _say_outage(self, is_out: bool) -> None:
        if is_out != self._is_out:
            self._is_out = is_out
            self.on_outage(is_out)


def max_pending_of(settings: EngineSettings, places: int) -> int:
    """Requests that may wait in an engine with so many places: as set, else a quarter of them and at least four."""
    return settings.max_pending if settings.max_pending is not None else max(4, places // 4)
