"""Drives episodes: takes `EpisodeRequested`, runs the agent, and is the only writer of the episode's TRACE while it holds it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from actors.runtime.actor import Actor, Context
from actors.runtime.bus import Incoming, Stored
from actors.runtime.engines import EngineDirectory, Place
from actors.runtime.episode_run import TICK_S, EpisodeRun
from actors.runtime.held_trace import Abandoned
from actors.runtime.work_spans import drive_span
from asearch.agents.episode import EpisodeState, GenerateRequest
from asearch.agents.recorded import start_of
from asearch.agents.registry import make_agent
from asearch.errors import BusError
from asearch.models.tokenizer import Tokenizer
from schemas.commands import Abort, CancelEpisodes, Generate, GenerationChunk, Lease, Received, ToolReply
from schemas.events import EpisodeRequested, Event
from schemas.records import Column, ToolResult

LEASE_S = 2.0
CHUNK_TIMEOUT_S = 60.0
"""Silence of an engine after which a request is asked again elsewhere, with the tokens already held."""
RECONNECT_SILENCE_S = 5.0
"""The same after the connection was lost: chunks that were under way then are lost."""
HAND_OVER_SILENCE_S = 4.0
"""The same of an engine that leaves: it hands over within a second or two."""
ENGINE_WAIT_S = 120.0
"""How long an episode waits before it is dropped, while no engine is ready and none says that it is starting."""


@dataclass
class _Ask:
    """One request to an engine, and the chunks that answer it."""

    id: str
    place: Place
    chunks: asyncio.Queue[GenerationChunk]
    n_reconnects: int
    patience_s: float = CHUNK_TIMEOUT_S
    has_begun: bool = False
    """Whether a chunk has come."""
    leaving: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Not empty once the engine was told to hand it over."""
    is_leaving: bool = False

    @property
    def engine(self) -> str:
        """Who was asked."""
        return self.place.engine


class Driver(Actor):
    """Holds many episodes at once, each a task of its own."""

    kind = "driver"
    queue = "driver"
    handle_timeout_s = 3600.0

    def __init__(self, context: Context, tokenizer_dir: str) -> None:
        super().__init__(context)
        self._agent = make_agent(context.settings.agent, Tokenizer.load(tokenizer_dir))
        self._slots = asyncio.Semaphore(context.settings.run.max_episodes_per_driver)
        self._engines = EngineDirectory(context.platform, context.settings.engine, ENGINE_WAIT_S)
        self._engines.on_outage = self._on_outage
        self._asks: dict[str, _Ask] = {}
        # Engines may still stream to an earlier life of this driver, under the same name.
        self._life = context.platform.new_id()
        self._results: dict[str, asyncio.Future[ToolResult]] = {}
        self._held: set[str] = set()
        self._episodes: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, EpisodeRun] = {}
        self._n_asks = 0
        self._n_tokens = 0
        self._n_handed_over = 0
        self._n_done = 0
        self._n_abandoned = 0
        self._n_taken_over = 0
        self._n_reconciled = 0

    def gauges(self) -> dict[str, float]:
        """Episodes held, finished, abandoned, taken over from another driver; losses of facts by the broker made good.

        Tokens taken from engines; requests that wait for a place in one, generations handed over from one to another, episodes
        that moved from one that still served.
        """
        return {
            "n_episodes": len(self._episodes),
            "n_tokens": self._n_tokens,
            "n_waiting": self._engines.n_waiting,
            "n_handed_over": self._n_handed_over,
            "n_moved": self._engines.n_moved,
            "n_done": self._n_done,
            "n_abandoned": self._n_abandoned,
            "n_taken_over": self._n_taken_over,
            "n_reconciled": self._n_reconciled + sum(run.trace.n_reconciled for run in self._runs.values()),
        }

    @property
    def concurrency(self) -> int:
        """Requests that may wait for a free place at once."""
        return 32

    async def start(self) -> None:
        """Listen for engines, for tokens and for tool results."""
        me = self.context.actor_id
        await self._engines.follow(self.bus)
        await self.bus.subscribe(GenerationChunk, me, self._on_chunk)
        await self.bus.subscribe(ToolReply, me, self._on_result)
        await self.bus.subscribe(CancelEpisodes, ">", self._on_cancel)

    async def work(self) -> None:
        """Say which episodes are held, for as long as the actor lives."""
        while True:
            await self._say_lease(list(self._held))
            await self.platform.sleep(LEASE_S)

    async def _say_lease(self, episodes: list[str]) -> None:
        lease = Lease(driver=self.context.actor_id, at_ns=self.platform.now_ns(), episodes=episodes)
        with suppress(BusError):
            await self.bus.publish(lease, key=self.context.actor_id)

    async def drain(self) -> None:
        """Let go of the episodes: they go on in another driver from what is recorded."""
        for task in list(self._episodes.values()):
            task.cancel()
        await self._say_lease([])

    async def handle(self, event: Event, stored: Stored) -> None:
        """Take one episode when there is a place for it."""
        if not isinstance(event, EpisodeRequested) or event.episode in self._held:
            return
        # In the lease from here on, also while it waits for a place: or the scheduler would ask for it again.
        self._held.add(event.episode)
        try:
            await self._slots.acquire()
        except BaseException:
            self._held.discard(event.episode)
            raise
        try:
            run = self._run_of(event, stored.sequence)
            state = await run.take()
        except BaseException:
            self._let_go(event.episode)
            raise
        if state is None:
            self._let_go(event.episode)
            return
        self._n_taken_over += run.taken_over
        self._runs[event.episode] = run
        task = self._episodes[event.episode] = self.spawn(self._hold(run, state), f"episode {event.episode}")
        # Not by the task itself: one that is cancelled before it first runs runs nothing at all.
        task.add_done_callback(lambda _: self._let_go(event.episode))

    async def poisoned(self, stored: Stored) -> None:
        """A request that fails again and again ends its episode; its group must not wait for it."""
        if isinstance(stored.event, EpisodeRequested):
            await self._run_of(stored.event, stored.sequence).die(
                "poison", "no driver could take it; see DEAD and the drivers' logs"
            )

    def _let_go(self, episode: str) -> None:
        """Forget an episode and free its place."""
        self._held.discard(episode)
        self._episodes.pop(episode, None)
        if run := self._runs.pop(episode, None):
            self._n_reconciled += run.trace.n_reconciled
        for call in [call for call in self._results if call.startswith(f"{episode}:")]:
            del self._results[call]
        self._engines.forget(episode)
        self._slots.release()

    def _run_of(self, request: EpisodeRequested, asked_at: int) -> EpisodeRun:
        return EpisodeRun(
            bus=self.bus,
            platform=self.platform,
            services=self,
            agent=self._agent,
            request=request,
            asked_at=asked_at,
            driver=self.context.actor_id,
            start=start_of(request, self.settings.agent),
            deadline_s=self.settings.run.episode_deadline_s,
            tool_timeout_s=self.settings.tools.deadline_s * 2,
        )

    async def _hold(self, run: EpisodeRun, state: EpisodeState) -> None:
        episode, since_ns, trouble = run.request.episode, self.platform.now_ns(), None
        try:
            try:
                await run.run(state)
            except (Abandoned, BusError):
                raise
            except Exception as error:
                # Whatever one episode fails of must not end the driver, and with it all others.
                self.log.exception("episode cannot go on", episode=episode)
                await run.die("poison", f"{type(error).__name__}: {error}")
            self._n_done += 1
        except Abandoned as error:
            self._n_abandoned += 1
            trouble = str(error)
            self.log.info("episode abandoned", episode=episode, why=str(error))
        except BusError as error:
            self._n_abandoned += 1
            trouble = str(error)
            self.log.warning("episode let go: the broker refuses", episode=episode, why=str(error))
        finally:
            if self.tracing.on:
                times, n_facts = (since_ns, self.platform.now_ns()), len(run.trace.known)
                self.tracing.emit(drive_span(self.context.run, run.request, self.context.actor_id, times, n_facts, trouble))

    async def _on_cancel(self, incoming: Incoming) -> None:
        if isinstance(incoming.message, CancelEpisodes):
            for episode in incoming.message.episodes:
                if task := self._episodes.get(episode):
                    task.cancel()

    # --- tools ---

    def tool_subject(self) -> str:
        """Where tool actors send results for this driver."""
        return self.bus.core_subject(ToolReply, self.context.actor_id)

    async def tool_result(self, call: str, timeout_s: float) -> ToolResult | None:
        """Wait for the result of a call; None after the timeout. What comes later is kept for the next wait."""
        future = self._results.setdefault(call, asyncio.get_running_loop().create_future())
        await asyncio.wait({future}, timeout=timeout_s)
        if not future.done():
            return None
        del self._results[call]
        return future.result()

    async def _on_result(self, incoming: Incoming) -> None:
        reply = incoming.message
        if isinstance(reply, ToolReply):
            if reply.episode in self._episodes:
                future = self._results.setdefault(reply.call, asyncio.get_running_loop().create_future())
                if not future.done():
                    future.set_result(reply.result)
            await incoming.reply(Received())

    # --- engines ---

    async def generate(self, request: EpisodeRequested, call: GenerateRequest) -> AsyncGenerator[GenerationChunk]:
        """Stream a generation from an engine. When the engine fails or falls silent this ends; the caller asks for the rest."""
        async with self._engines.place(request.episode, request.progress) as place:
            self._n_asks += 1
            name = f"{call.id}/{self._life}/{self._n_asks}"
            ask = self._asks[name] = _Ask(name, place, asyncio.Queue(maxsize=1024), self.bus.n_reconnects)
            finished = False
            try:
                if not await self._send(request, call, ask):
                    return
                while not finished:
                    chunk = await self._next_chunk(ask)
                    if chunk is None:
                        return
                    finished = chunk.finish is not None or chunk.ask_elsewhere
                    self._n_tokens += len(chunk.versions) and chunk.columns["ids"].shape[0]
                    self._n_handed_over += chunk.ask_elsewhere
                    # The last word of an engine that hands over may hold no token: that is nothing to record.
                    if chunk.versions or not chunk.ask_elsewhere:
                        yield chunk
            finally:
                self._asks.pop(name, None)
                await ask.leaving.aclose()
                if not finished:
                    with suppress(BusError):
                        await self.bus.publish(Abort(request=name), key=place.engine)

    async def _send(self, request: EpisodeRequested, call: GenerateRequest, ask: _Ask) -> bool:
        """Ask the engine; False if the connection takes nothing now."""
        try:
            await self.bus.publish(self._command(request, call, ask.id), key=ask.engine)
        except BusError as error:
            self.log.warning(
                "generation not asked for", episode=request.episode, request=ask.id, engine=ask.engine, error=str(error)
            )
            return False
        return True

    async def _next_chunk(self, ask: _Ask) -> GenerationChunk | None:
        """The next chunk, None when the engine failed, died or fell silent."""
        ask.patience_s = CHUNK_TIMEOUT_S
        while ask.patience_s > 0:
            try:
                async with asyncio.timeout(TICK_S):
                    chunk = await ask.chunks.get()
            except TimeoutError:
                ask.patience_s -= TICK_S
                if self._engines.has_lost(ask.place):
                    return None
                if self._engines.is_draining(ask.place):
                    ask.patience_s = min(ask.patience_s, HAND_OVER_SILENCE_S)
                if self.bus.n_reconnects != ask.n_reconnects:
                    ask.n_reconnects = self.bus.n_reconnects
                    ask.patience_s = min(ask.patience_s, RECONNECT_SILENCE_S)
                await self._rebalance(ask)
                continue
            if chunk.error is not None:
                episode = chunk.request.partition(":")[0]
                self.log.warning(
                    "generation failed", episode=episode, request=chunk.request, engine=ask.engine, error=chunk.error
                )
                return None
            ask.has_begun = True
            return chunk
        return None

    async def _rebalance(self, ask: _Ask) -> None:
        """Take a request out of a queue while another engine has places free; tokens that it has after all are kept."""
        if ask.has_begun or ask.is_leaving or not self._engines.should_leave(ask.place):
            return
        ask.is_leaving = True
        await ask.leaving.enter_async_context(self._engines.leaving(ask.place))
        with suppress(BusError):
            await self.bus.publish(Abort(request=ask.id, hand_over=True), key=ask.engine)

    def _on_outage(self, is_out: bool) -> None:
        """Say that episodes wait for an engine, or that they no longer do."""
        if is_out:
            self.log.warning("no engine serves: episodes wait for one", limit_s=ENGINE_WAIT_S)
        else:
            self.log.info("an engine serves again")
        if self.state == "ready":
            self.become("ready", "an engine" if is_out else "")

    def _command(self, request: EpisodeRequested, call: GenerateRequest, ask: str) -> Generate:
        prompt = call.input_bytes
        return Generate(
            request=ask,
            episode=request.episode,
            prompt=Column(dtype="u4", shape=(len(prompt) // 4,), data=prompt),
            stop=list(call.stop),
            max_new_tokens=call.max_new_tokens,
            temperature=call.temperature,
            top_p=call.top_p,
            top_k=call.top_k,
            seed=call.seed,
            min_step=request.progress,
            reply_to=self.bus.core_subject(GenerationChunk, self.context.actor_id),
            driver=self.context.actor_id,
            # An evaluation is of one version; without allowance for staleness older tokens would not be trained.
            may_be_stale=request.purpose == "train" and self.settings.run.eta > 0,
        )

    async def _on_chunk(self, incoming: Incoming) -> None:
        chunk = incoming.message
        if isinstance(chunk, GenerationChunk) and (ask := self._asks.get(chunk.request)) is not None:
            with suppress(asyncio.QueueFull):
                # What is left out here shows as a gap in the offsets, and is asked for again.
                ask.chunks.put_nowait(chunk)
