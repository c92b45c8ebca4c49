"""One episode in a driver: asks for what the agent asks for, stores each fact in TRACE before the agent sees it.

An engine that fails, falls silent or leaves tokens out, a connection that was lost, and a takeover are one case: what is
recorded stays, and the rest is asked for again.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypedDict

import structlog

from actors.runtime.bus import Bus
from actors.runtime.held_trace import HeldTrace
from actors.runtime.outcomes import append_outcome, dead, dropped
from actors.runtime.platform import Platform
from asearch.agents.episode import (
    Agent,
    DeadlineNear,
    EpisodeStart,
    EpisodeState,
    Fact,
    FactError,
    GenerateRequest,
    Request,
    TokenGapError,
    ToolCall,
    ToolReplied,
    request_hash,
)
from asearch.agents.recorded import elapsed_ns, fact_of, fold, generated_fact, n_idle_takes, valid_facts
from asearch.agents.segments import segments
from asearch.agents.transcript import transcript
from asearch.errors import BlobMissingError, ConflictError, EngineError
from schemas.codec import decode_result, encode, encode_generated, encode_result
from schemas.commands import GenerationChunk
from schemas.events import (
    DeadlineNeared,
    EpisodeFinished,
    EpisodeRequested,
    EpisodeTaken,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
    TraceFact,
)
from schemas.records import ToolResult, Trajectory
from schemas.topology import INLINE_BYTES

MAX_IDLE_TAKES = 5
"""Drivers in a row that took the episode and got nothing more done: it kills them, or cannot be gone on with."""
FORCE_AT = 0.8
"""Share of the deadline after which an episode is asked for its answer."""
MAX_FRUITLESS_ASKS = 30
"""Asks in a row for a generation that brought no token."""
MAX_ASK_DELAY_S = 5.0
TICK_S = 1.0
"""How often an episode that waits looks whether the connection was lost meanwhile."""

log = structlog.get_logger()


class Stamp(TypedDict):
    """The fields that every fact of a driver has."""

    id: str
    at_ns: int
    episode: str
    attempt: int
    driver: str


class Services(Protocol):
    """What an episode needs of the driver that runs it."""

    def generate(self, request: EpisodeRequested, call: GenerateRequest) -> AsyncGenerator[GenerationChunk]:
        """Chunks of a generation, offsets from the first new token. Raises EngineError when it cannot go on."""
        ...

    async def tool_result(self, call: str, timeout_s: float) -> ToolResult | None:
        """The result of a call that was requested, None if it has not come yet."""
        ...

    def tool_subject(self) -> str:
        """Where tool actors send results."""
        ...


@dataclass
class EpisodeRun:
    """An episode that this driver holds."""

    bus: Bus
    platform: Platform
    services: Services
    agent: Agent
    request: EpisodeRequested
    driver: str
    start: EpisodeStart
    deadline_s: float
    tool_timeout_s: float
    taken_over: bool = False
    """Whether another driver has held it before."""
    asked_at: int = 0
    """Where the request lies in PLAN, 0 if that is not known."""

    def __post_init__(self) -> None:
        self.trace = HeldTrace(self.bus, self.request.episode, self.request, self.asked_at)
        self._generation = ""
        self._n_asked = 0
        self._n_fruitless = 0

    async def take(self) -> EpisodeState | None:
        """Append `EpisodeTaken` and return the state to go on from; None if the episode has ended or is somebody else's."""
        if await self.trace.has_outcome():
            return None
        taken = EpisodeTaken(
            id=f"{self.request.episode}-taken-{self.request.attempt}",
            at_ns=self.platform.now_ns(),
            episode=self.request.episode,
            driver=self.driver,
            attempt=self.request.attempt,
            request=self.request,
        )
        try:
            await self.trace.take(taken)
        except ConflictError:
            return await self._take_over(taken)
        return self.agent.begin(self.start)[0]

    async def _take_over(self, taken: EpisodeTaken) -> EpisodeState | None:
        """Fold what is recorded and go on from there. A delivery of a request that is not newer changes nothing."""
        stored = await self.trace.read()
        facts = valid_facts(item.event for item in stored)
        attempts = [fact.attempt for fact in facts if isinstance(fact, EpisodeTaken)]
        finished = any(isinstance(fact, EpisodeFinished) for fact in facts)
        if finished or not stored or max(attempts, default=-1) >= self.request.attempt:
            return None
        if n_idle_takes(facts) >= MAX_IDLE_TAKES:
            await self.die("no_progress", f"{MAX_IDLE_TAKES} drivers in a row took it and got nothing more done")
            return None
        try:
            await self.trace.take(taken, stored)
        except ConflictError:
            return None
        self.taken_over = True
        try:
            return fold(self.agent, self.start, await self._facts(facts))
        except BlobMissingError as error:
            await self.die("blob_missing", str(error))
        except FactError as error:
            await self.die("poison", f"what is recorded cannot be folded: {error}")
        return None

    async def _facts(self, recorded: Iterable[TraceFact]) -> list[Fact]:
        facts: list[Fact] = []
        for event in recorded:
            blob = event.blob if isinstance(event, ToolReturned) else None
            fact = fact_of(event, decode_result(await self.bus.get_blob(blob)) if blob else None)
            if fact is not None:
                facts.append(fact)
        return facts

    async def run(self, state: EpisodeState) -> None:
        """Go on from a state to the end and store it. Raises Abandoned, or BusError when the broker stays away."""
        # The wall clock of the episode goes on where the last driver's facts leave it.
        begun_s = self.platform.monotonic() - elapsed_ns(self.trace.known) / 1e9
        held_s = self.platform.monotonic()
        try:
            async with asyncio.timeout(begun_s + self.deadline_s - held_s):
                state = await self._until_finished(state, begun_s)
        except TimeoutError:
            await self.drop("deadline", f"not finished after {self.deadline_s:g} s")
            return
        except EngineError as error:
            await self.drop("engine_outage", str(error))
            return
        finished = state.finished
        if finished is not None and finished.dropped_reason is not None:
            await self.drop(finished.dropped_reason, finished.message)
            return
        await self._finish(state, int((self.platform.monotonic() - held_s) * 1e9))

    async def _until_finished(self, state: EpisodeState, begun_s: float) -> EpisodeState:
        while state.finished is None:
            await self.trace.refresh()
            if not state.deadline_near and self.platform.monotonic() - begun_s > FORCE_AT * self.deadline_s:
                await self.trace.append(DeadlineNeared(**self._stamp("deadline")))
                state, _ = self.agent.apply(state, DeadlineNear())
                continue
            (asked,) = self.agent.pending(state)
            state = await self._serve(state, asked)
        return state

    async def _serve(self, state: EpisodeState, asked: Request) -> EpisodeState:
        if isinstance(asked, GenerateRequest):
            return await self._generate(state, asked)
        if isinstance(asked, ToolCall):
            return await self._call_tool(state, asked)
        raise TypeError(f"an open episode asks for {type(asked).__name__}")

    async def _generate(self, state: EpisodeState, asked: GenerateRequest) -> EpisodeState:
        await self._count_ask(asked)
        async with aclosing(self.services.generate(self.request, asked)) as chunks:
            async for chunk in chunks:
                told = self._told(asked, chunk)
                try:
                    after, _ = self.agent.apply(state, generated_fact(told))
                except TokenGapError as error:
                    # A chunk got lost. Nothing more of this stream is used: the rest is asked for again.
                    log.warning("tokens missing", episode=self.request.episode, error=str(error))
                    break
                except FactError as error:
                    raise EngineError(f"engine {chunk.engine} sent tokens that cannot be used: {error}") from error
                await self.trace.append(told)
                state = after
                if told.versions:
                    self._n_fruitless = 0
                await self.platform.fault("driver.tokens_appended")
        return state

    async def _count_ask(self, asked: GenerateRequest) -> None:
        """Count the asks for a generation; wait before one that follows an ask without a token. Raises EngineError."""
        if asked.id != self._generation:
            self._generation, self._n_asked, self._n_fruitless = asked.id, 0, 0
        if self._n_fruitless >= MAX_FRUITLESS_ASKS:
            raise EngineError(f"{MAX_FRUITLESS_ASKS} asks in a row for {asked.id} brought no token; see the engines' logs")
        if self._n_fruitless:
            await self.platform.sleep(min(MAX_ASK_DELAY_S, 0.1 * 2**self._n_fruitless))
        self._n_asked += 1
        self._n_fruitless += 1

    def _told(self, asked: GenerateRequest, chunk: GenerationChunk) -> TokensGenerated:
        offset = asked.n_held + chunk.offset
        return TokensGenerated(
            **self._stamp("tokens"),
            request=asked.id,
            turn=asked.turn,
            offset=offset,
            request_hash="" if offset else request_hash(asked),
            columns=chunk.columns,
            versions=chunk.versions,
            finish=chunk.finish,
            engine=chunk.engine,
            elapsed_ns=chunk.elapsed_ns,
            n_asked=self._n_asked,
        )

    async def _call_tool(self, state: EpisodeState, asked: ToolCall) -> EpisodeState:
        await self.trace.append(
            ToolRequested(
                **self._stamp("tool"),
                call=asked.id,
                turn=asked.turn,
                tool=asked.tool,
                argument=asked.argument,
                task=self.request.task.id,
                member=self.request.member,
                reply_to=self.services.tool_subject(),
                seed=self.request.seed,
            )
        )
        await self.platform.fault("driver.tool_requested")
        result = await self._result(asked.id)
        await self.trace.append(await self._returned(asked, result))
        state, _ = self.agent.apply(state, ToolReplied(call=asked.id, result=result))
        return state

    async def _result(self, call: str) -> ToolResult:
        """Wait for the result of a call. A request that the broker has lost meanwhile is made again."""
        deadline_s = self.platform.monotonic() + self.tool_timeout_s
        while (left_s := deadline_s - self.platform.monotonic()) > 0:
            result = await self.services.tool_result(call, min(TICK_S, left_s))
            if result is not None:
                return result
            await self.trace.refresh()
        return ToolResult(error="timeout", message=f"no result after {self.tool_timeout_s:g} s")

    async def _returned(self, asked: ToolCall, result: ToolResult) -> ToolReturned:
        inline, blob = result, None
        if sum(len(document.text) for document in result.documents) * 2 > INLINE_BYTES:
            inline, blob = None, await self.bus.put_blob(self.request.episode, encode_result(result))
        return ToolReturned(
            **self._stamp("returned"),
            call=asked.id,
            turn=asked.turn,
            result=inline,
            blob=blob,
        )

    async def _finish(self, state: EpisodeState, held_ns: int) -> None:
        request, told = self.request, transcript(state)
        trajectory = Trajectory(episode=request.episode, segments=segments(state))
        blob = await self.bus.put_blob(request.episode, encode(trajectory))
        generated, generated_blob = told.generated, None
        if sum(map(len, generated)) * 2 > INLINE_BYTES:
            generated_blob = await self.bus.put_blob(request.episode, encode_generated(generated))
            generated = []
        await self.platform.fault("driver.blob_stored")
        finished = EpisodeFinished(
            **self._stamp("finished"),
            group=request.group,
            member=request.member,
            members=request.members,
            slot=request.slot,
            purpose=request.purpose,
            task=request.task.id,
            status=told.status,
            answer=told.answer,
            generated=generated,
            generated_blob=generated_blob,
            tool_log=told.tool_log,
            trajectory=blob,
            n_turns=told.n_turns,
            n_tokens_generated=told.n_tokens_generated,
            refill=request.refill,
            label=request.label,
            elapsed_ns=held_ns,
            requested_ns=request.at_ns,
            oldest=told.oldest,
            meta=request.task.meta,
        )
        await self.trace.append(finished)
        _say_finished(finished)

    async def drop(self, reason: str, message: str) -> None:
        """Give the episode the outcome `dropped`. Raises Abandoned if it is another driver's or has ended, BusError."""
        # An outcome is not fenced by TRACE: a driver that was presumed dead must not end what another one goes on with.
        await self.trace.reconcile()
        await append_outcome(self.bus, dropped(self.request, self.platform.now_ns(), reason, message))

    async def die(self, reason: str, message: str) -> None:
        """Give the episode the outcome `dead`; nothing happens if it has one."""
        await append_outcome(self.bus, dead(self.request, self.platform.now_ns(), reason, message))

    def _stamp(self, what: str) -> Stamp:
        """The fields of this driver's next fact. The id is made once: a fact that is appended again is the same event."""
        return Stamp(
            id=f"{self.request.episode}-{self.request.attempt}-{len(self.trace.known)}-{what}",
            at_ns=self.platform.now_ns(),
            episode=self.request.episode,
            attempt=self.request.attempt,
            driver=self.driver,
        )


def _say_finished(finished: EpisodeFinished) -> None:
    """The one line of an episode that met no trouble."""
    log.info(
        "episode finished",
        episode=finished.episode,
        event_id=finished.id,
        status=finished.status,
        turns=finished.n_turns,
        tokens=finished.n_tokens_generated,
        elapsed_s=round(finished.elapsed_ns / 1e9, 3),
    )
