"""What the run does at this moment, as far as a fault's recovery is judged by it: heartbeats, and the newest fact of each kind.

Times are the writers' `at_ns`: all processes share one machine and so one clock.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from actors.runtime.bus import Bus, Incoming
from asearch.errors import StreamRewoundError
from schemas.commands import Heartbeat
from schemas.events import (
    EpisodeGraded,
    EpisodeRequested,
    EpisodeTaken,
    Event,
    RunEnded,
    StepTrained,
    TokensGenerated,
    ToolReturned,
)

FOLLOWED = ("plan", "trace", "outcomes", "policy")
GAUGE_OF_RECORDER = "n_archived"


@dataclass(frozen=True)
class Life:
    """One process of an actor, of an engine one server of it: since when it says that it is ready."""

    pid: int
    ready_ns: int
    n_server_starts: int = 0


class Watch:
    """Keeps the newest of everything."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}
        self.ready_ns: dict[str, int] = {}
        """The newest heartbeat that said `ready`, by actor."""
        self.progress_ns: dict[str, int] = {}
        """The newest fact by actor name, or by actor kind where a fact does not name its actor; `step` by the trainer."""
        self.n_steps = 0
        self.step = 0
        self.ended = False
        self.gauges: dict[tuple[str, int], dict[str, float]] = {}
        """The newest gauges of every process there ever was, by actor and pid."""
        self._moved = asyncio.Condition()

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until it holds; False if it does not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(holds)
        except TimeoutError:
            return False
        return True

    def counted(self, gauge: str, kind: str) -> int:
        """The sum of a counter over all processes of an actor kind; a killed one loses what it counted since it said so last."""
        return int(sum(found.get(gauge, 0.0) for (name, _), found in self.gauges.items() if name.startswith(f"{kind}-")))

    async def heard(self, beat: Heartbeat) -> None:
        """Take a heartbeat."""
        name = beat.actor_id
        before = self.gauges.get((name, beat.pid), {})
        if beat.actor == "recorder" and beat.gauges.get(GAUGE_OF_RECORDER, 0.0) > before.get(GAUGE_OF_RECORDER, float("inf")):
            self._progress(name, beat.at_ns)
        self.gauges[name, beat.pid] = beat.gauges
        if beat.state == "ready":
            self.ready_ns[name] = max(beat.at_ns, self.ready_ns.get(name, 0))
            n_starts = int(beat.gauges.get("n_server_starts", 0))
            life = self.lives.get(name)
            if life is None or (life.pid, life.n_server_starts) != (beat.pid, n_starts):
                self.lives[name] = Life(beat.pid, beat.at_ns, n_starts)
        await self._notify()

    async def saw(self, event: Event) -> None:
        """Take a fact."""
        match event:
            case EpisodeTaken():
                self._progress(event.driver, event.at_ns)
            case TokensGenerated():
                self._progress(event.engine, event.at_ns)
            case ToolReturned():
                self._progress("tool", event.at_ns)
            case EpisodeGraded():
                self._progress("grader", event.at_ns)
            case EpisodeRequested():
                self._progress("scheduler-0", event.at_ns)
            case StepTrained():
                self.n_steps += 1
                self.step = event.step + 1
                self._progress("trainer-0", event.at_ns)
            case RunEnded():
                self.ended = True
            case _:
                return
        await self._notify()

    def made_progress(self, actor: str, since_ns: int) -> bool:
        """Whether the actor, or one of its kind where facts do not name it, did its work after this time."""
        kind = actor.rpartition("-")[0]
        return max(self.progress_ns.get(actor, 0), self.progress_ns.get(kind, 0)) > since_ns

    def _progress(self, name: str, at_ns: int) -> None:
        self.progress_ns[name] = max(at_ns, self.progress_ns.get(name, 0))

    async def _notify(self) -> None:
        async with self._moved:
            self._moved.notify_all()


@asynccontextmanager
async def watching(bus: Bus) -> AsyncGenerator[Watch]:
    """A watch of the run that is kept up to date until the block is left."""
    watch = Watch()

    async def on_heartbeat(incoming: Incoming) -> None:
        if isinstance(incoming.message, Heartbeat):
            await watch.heard(incoming.message)

    subscription = await bus.subscribe(Heartbeat, ">", on_heartbeat)
    async with asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(_follow(bus, watch, stream), name=f"watch {stream}") for stream in FOLLOWED]
        try:
            yield watch
        finally:
            for follower in followers:
                follower.cancel()
            await subscription.drain(1.0)


async def _follow(bus: Bus, watch: Watch, stream: str) -> None:
    """Read a stream; from its start again when the broker has lost its tail: repeats change nothing but a count of steps."""
    while True:
        try:
            async with aclosing(bus.read(stream)) as reader:
                async for stored in reader:
                    if stored.event is not None:
                        await watch.saw(stored.event)
        except StreamRewoundError:
            continue
