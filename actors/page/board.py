"""What the page shows of one run: its folds, followed as they grow, and who looks at them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import structlog

from actors.page import figures
from actors.page.recent import RecentAnswers
from actors.page.samples import SAMPLE_S, Samples, sample_of
from actors.page.subscribers import ALIVE, Audience, Subscriber, sse
from actors.page.watched import WatchedEpisode
from actors.runtime.archive_index import ArchiveIndex
from actors.runtime.behaviour_fold import BehaviourFold
from actors.runtime.broker_watch import store_trouble
from actors.runtime.bus import Bus, Stored, StreamInfo
from actors.runtime.following import View, follow
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import Workspace, is_live
from asearch.errors import AsearchError, BusError, StreamRewoundError
from asearch.traces.rows import RowTable
from schemas.events import TraceFact
from schemas.topology import TOPOLOGY, any_fact

TICK_S = 0.25
ALIVE_S = 10.0
"""How often every connection carries something."""
ROWS_S = 1.0
"""How often it is said that the list has changed."""
RUN_S, QUIET_RUN_S = 1.0, 3.0
"""How often the run is shown while it changes, and while it does not: heartbeats grow old."""
STREAMS_S = 5.0
RETRY_S = 1.0
MAX_BEHAVIOURS = 5000
"""Episodes of a run whose behaviour is looked at; of more a sample."""
MAX_WATCHED = 256
LINGER_S = 30.0
"""How long an episode stays open after the last one who looked has left."""
STAGES_LINGER_S = 3.0
"""How long TRACE is followed as a whole after the last look at a list."""
SCOPE_S = 1.0
"""How often is looked whether what is read of TRACE is still what is needed."""
GATHER_S = 0.05
"""How long is waited for more who come to look."""
MAX_FILTERS = 64
NOTHING, EVERYTHING = frozenset[str](), frozenset({"*"})
"""What is read of TRACE, beside the names of episodes."""

_encode = msgspec.json.Encoder().encode
log = structlog.get_logger()


class Board:
    """One run. Of TRACE only what somebody looks at is read."""

    def __init__(self, source: RunSource, bus: Bus, view: View, workspace: Workspace, *, keeps_samples: bool = False) -> None:
        self.source = source
        self.bus = bus
        self.view = view
        self.audience = Audience()
        """Who looks at the run as a whole."""
        self.samples = Samples(source.run_dir, keeps=keeps_samples)
        self.windows = RecentAnswers(bus.platform)
        self.behaviour = BehaviourFold(ArchiveIndex(source.run_dir / "archive"), MAX_BEHAVIOURS)
        self._marks: dict[int, dict[str, Any]] = {}
        """The newest moments of POLICY by sequence: they are read from the past and heard as they come."""
        self._marked = view.report
        """The report that they belong to: another one begins where the broker has lost the tail of a stream."""
        self.streams: dict[str, StreamInfo] = {}
        self._watched: dict[str, WatchedEpisode] = {}
        self._looked_s: dict[str, float] = {}
        self._ended: set[str] = set()
        """Watched episodes whose record has to be read again."""
        self._workspace = workspace
        self._changed = True
        self._shown_revision = -1
        self._shown_s = -RUN_S
        self._rows_s = self._alive_s = 0.0
        self._said: tuple[bool, str | None] = (True, None)
        self._trouble: str | None = None
        self._trace_wanted = asyncio.Event()
        self._stages_s = -STAGES_LINGER_S
        self._state = b""

    @property
    def rows(self) -> RowTable:
        """The episodes of the run."""
        assert self.view.rows is not None  # noqa: S101
        return self.view.rows

    @property
    def timeline(self) -> list[dict[str, Any]]:
        """The newest moments of the policy in order."""
        return [self._marks[sequence] for sequence in sorted(self._marks)]

    @property
    def is_live(self) -> bool:
        """Whether the run's supervisor lives."""
        return is_live(self.source.content)

    # --- what it says ---

    def state(self) -> dict[str, Any]:
        """The run now, by the names of the interface."""
        report = self.view.report
        state = "ended" if report.ended is not None else "live" if self.is_live else "crashed"
        return {
            "run": self.source.run,
            "state": state,
            **figures.summary(self.view, self.bus.platform.now_ns()),
            "streams": figures.stream_figures(self.streams),
            "dead_letters": self.streams["dead"].n_messages if "dead" in self.streams else 0,
            "broker": {"connected": self.bus.is_connected, "trouble": self._trouble},
            "timeline": self.timeline,
            "n_episodes": len(self.rows),
        }

    # --- who looks ---

    def greet(self, subscriber: Subscriber) -> None:
        """Show a newcomer the run as it is now."""
        if self.bus.platform.monotonic() - self._shown_s >= RUN_S:
            self._say_state()
        subscriber.show("run", self._state)

    def _say_state(self) -> None:
        self._changed, self._shown_s = False, self.bus.platform.monotonic()
        self._state = sse("run", _encode(self.state()))

    async def watch(self, episode: str) -> WatchedEpisode:
        """The episode, opened for the first who looks. Raises InputError for one that the run has not, BusError."""
        found = self._watched.get(episode)
        if found is None:
            if len(self._watched) >= MAX_WATCHED:
                self._close_idle(0.0)
            found = self._watched[episode] = WatchedEpisode(self.source, episode)
        self._looked_s[episode] = self.bus.platform.monotonic()
        if not found.items or not (found.has_ended or len(found.audience)):
            # While nobody looked nothing of TRACE was read for it.
            try:
                await found.catch_up()
            except BaseException:
                self._close(episode)
                raise
        # It may have been closed as idle while it was read.
        return self._watched.setdefault(episode, found)

    def need_stages(self) -> None:
        """Somebody looks at a list, whose stages only TRACE tells."""
        self._stages_s = self.bus.platform.monotonic()
        self._trace_wanted.set()

    def joined(self) -> None:
        """Somebody has begun to look at an episode."""
        self._trace_wanted.set()

    @property
    def n_viewers(self) -> int:
        """Connections that look at the run or at one of its episodes."""
        return len(self.audience) + sum(len(each.audience) for each in self._watched.values())

    def _close_idle(self, linger_s: float) -> None:
        now_s = self.bus.platform.monotonic()
        for episode, watched in list(self._watched.items()):
            if len(watched.audience):
                self._looked_s[episode] = now_s
            elif now_s - self._looked_s.get(episode, 0.0) >= linger_s:
                self._close(episode)

    def _close(self, episode: str) -> None:
        """Forget an episode; whoever looks at it is cut off, and opens it anew."""
        self._looked_s.pop(episode, None)
        if (watched := self._watched.pop(episode, None)) is not None:
            watched.audience.cut_off()

    def close(self) -> None:
        """Cut off all who look: nothing comes any more."""
        self.audience.cut_off()
        for episode in list(self._watched):
            self._close(episode)

    # --- what comes ---

    def on_folded(self, stored: Stored) -> None:
        """A message of PLAN, OUTCOMES or POLICY was folded."""
        self._changed = True
        if stored.stream == "policy":
            self._mark(stored)
        elif stored.stream == "outcomes" and stored.key and stored.key[-1] in self._watched:
            self._ended.add(stored.key[-1])

    def _mark(self, stored: Stored) -> None:
        if self._marked is not self.view.report:
            self._marked = self.view.report
            self._marks.clear()
        if (mark := figures.moment(stored.event)) is not None:
            self._marks[stored.sequence] = mark
            if len(self._marks) > figures.MAX_TIMELINE:
                del self._marks[min(self._marks)]

    async def _follow_trace(self) -> None:
        """Read of TRACE what somebody needs, for as long as somebody does."""
        while True:
            await self._trace_wanted.wait()
            await self.bus.platform.sleep(GATHER_S)
            self._trace_wanted.clear()
            if (scope := self._scope()) == NOTHING:
                continue
            reading = asyncio.create_task(self._read_trace(scope), name="read trace")
            try:
                while self._scope() == scope and not reading.done():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SCOPE_S):
                            await self._trace_wanted.wait()
                            self._trace_wanted.clear()
            finally:
                reading.cancel()
                await asyncio.wait({reading})
            if not reading.cancelled():
                reading.result()
            if self._scope() != NOTHING:
                self._trace_wanted.set()

    def _scope(self) -> frozenset[str]:
        """EVERYTHING while somebody looks at the stages of a list; else the open episodes that somebody looks at."""
        if self.bus.platform.monotonic() - self._stages_s < STAGES_LINGER_S:
            return EVERYTHING
        open_ones = [name for name, each in self._watched.items() if len(each.audience) and not each.has_ended]
        return frozenset(open_ones) if len(open_ones) <= MAX_FILTERS else EVERYTHING

    async def _read_trace(self, scope: frozenset[str]) -> None:
        """Read until cancelled, or until the rows are folded anew, or the broker has lost a tail."""
        rows = self.rows
        whole = scope == EVERYTHING
        begin = (
            rows.folded["trace"]
            if whole
            else min((self._watched[name].last_sequence for name in scope if name in self._watched), default=0)
        )
        subjects = () if whole else [any_fact(self.bus.run, "trace", name) for name in sorted(scope)]
        try:
            async with aclosing(self.bus.read("trace", start_sequence=begin + 1, subjects=subjects)) as reader:
                async for stored in reader:
                    if self.rows is not rows:
                        # Another stream was folded anew, into rows that know nothing of TRACE.
                        return
                    await self._take_trace(stored, whole=whole)
        except StreamRewoundError:
            self.rows.forget_trace()
            self._ended.update(self._watched)
        except BusError as error:
            log.warning("not following", why=str(error))
            await self.bus.platform.sleep(RETRY_S)

    async def _take_trace(self, stored: Stored, *, whole: bool) -> None:
        if whole:
            self.rows.fold("trace", stored.sequence, stored.event)
        elif isinstance(stored.event, TraceFact):
            self.rows.move(stored.sequence, stored.event)
        episode = stored.key[-1] if stored.key else ""
        if (watched := self._watched.get(episode)) is not None:
            try:
                await watched.offer(stored)
            except BusError:
                raise
            except Exception:
                # What one episode's facts say must not end the page.
                log.exception("a fact cannot be told", episode=episode, sequence=stored.sequence)
                self._close(episode)

    # --- what is shown ---

    async def run(self) -> None:
        """Follow and show until cancelled."""
        await asyncio.to_thread(self.samples.read)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_trace(), name="follow trace")
            tasks.create_task(self._every(TICK_S, self._tick), name="tick")
            tasks.create_task(self._every(SAMPLE_S, self._sample), name="sample")
            tasks.create_task(self._every(STREAMS_S, self._look_at_streams), name="streams")

    async def _every(self, period_s: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await act()
            except AsearchError as error:
                log.warning("the page is behind", why=str(error))
            await self.bus.platform.sleep(period_s)

    async def _tick(self) -> None:
        self._close_idle(LINGER_S)
        self._say_broker()
        for episode in list(self._ended):
            await self._read_again(episode)
            self._ended.discard(episode)
        for episode, watched in self._watched.items():
            if len(watched.audience) and (row := self.rows.rows.get(episode)) is not None:
                watched.show_row(row)
        if len(self.audience):
            self._show_run()
        self._say_alive()

    def _say_alive(self) -> None:
        """Let every connection carry something now and then: one whose other end is gone is noticed only so."""
        now_s = self.bus.platform.monotonic()
        if now_s - self._alive_s >= ALIVE_S:
            self._alive_s = now_s
            for audience in (self.audience, *(each.audience for each in self._watched.values())):
                audience.show("alive", ALIVE)

    async def _read_again(self, episode: str) -> None:
        """Tell what was recorded since; an episode that cannot be read is closed: opening it says why. Raises BusError."""
        if (watched := self._watched.get(episode)) is None:
            return
        try:
            await watched.catch_up()
        except BusError:
            raise
        except AsearchError as error:
            log.warning("an episode cannot be read", episode=episode, why=str(error))
            self._close(episode)

    def _say_broker(self) -> None:
        now = (self.bus.is_connected, self._trouble)
        if now != self._said:
            self._said = now
            message = sse("broker", _encode({"connected": now[0], "trouble": now[1]}))
            self.audience.put(message)
            for watched in self._watched.values():
                watched.audience.put(message)

    def _show_run(self) -> None:
        now_s = self.bus.platform.monotonic()
        if self.rows.revision != self._shown_revision and now_s - self._rows_s >= ROWS_S:
            self._shown_revision, self._rows_s = self.rows.revision, now_s
            data = _encode({"revision": self.rows.revision, "n_total": len(self.rows)})
            self.audience.show("rows", sse("rows", data))
        if (self._changed and now_s - self._shown_s >= RUN_S) or now_s - self._shown_s >= QUIET_RUN_S:
            self._say_state()
            self.audience.show("run", self._state)

    async def _sample(self) -> None:
        if self.view.report.ended is None and self.is_live:
            self.samples.add(sample_of(self.view, self.bus.platform.now_ns()))

    async def _look_at_streams(self) -> None:
        self._trouble = await asyncio.to_thread(store_trouble, self._workspace.broker_folder)
        for stream in TOPOLOGY.streams:
            self.streams[stream.name] = await self.bus.stream_info(stream.name)


@contextlib.asynccontextmanager
async def open_board(source: RunSource, bus: Bus, workspace: Workspace, *, keeps_samples: bool = False) -> AsyncGenerator[Board]:
    """The board of a run, kept up to date until the block is left; the block is cancelled where that fails.

    Of all who show a run, its viewer alone `keeps_samples` in the run's folder. Raises BusError.
    """
    async with follow(bus, source.run_dir, with_rows=True) as view:
        board = Board(source, bus, view, workspace, keeps_samples=keeps_samples)
        view.on_folded = board.on_folded
        async with aclosing(bus.read("policy", follow=False)) as past:
            async for stored in past:
                board.on_folded(stored)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(board.run(), name=f"board {source.run}")
                try:
                    yield board
                finally:
                    running.cancel()
        finally:
            board.close()
