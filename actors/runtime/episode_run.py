"""One episode in a driver: asks for what the agent asks for, appends each fact to TRACE before the agent sees it.

Every append is conditional on the episode's last sequence, so of two drivers that hold the same episode one is refused at
its first append and abandons it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from actors.runtime.bus import Bus, Stored
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
)
from asearch.agents.recorded import fact_of, fold, generated_fact
from asearch.agents.segments import segments
from asearch.agents.transcript import transcript
from asearch.errors import AsearchError, BlobMissingError, ConflictError, EngineError
from schemas.codec import decode_result, encode, encode_generated, encode_result
from schemas.commands import GenerationChunk
from schemas.events import (
    DeadlineNeared,
    EpisodeFinished,
    EpisodeRequested,
    EpisodeTaken,
    Event,
    TokensGenerated,
    ToolRequested,
    ToolReturned,
)
from schemas.records import ToolResult, Trajectory
from schemas.topology import INLINE_BYTES

MAX_IDLE_TAKES = 5
"""Drivers in a row that took the episode and recorded nothing more: it kills them, or cannot be gone on with."""
FORCE_AT = 0.8
"""Share of the deadline after which an episode is asked for its answer."""

log = structlog.get_logger()


class Abandoned(AsearchError):
    """Another driver holds the episode, or it has ended elsewhere."""


class Services(Protocol):
    """What an episode needs of the driver that runs it."""

    def generate(self, request: EpisodeRequested, call: GenerateRequest) -> AsyncGenerator[GenerationChunk]:
        """Chunks of a generation, offsets from the first new token. Raises EngineError when it cannot go on."""
        ...

    async def tool_result(self, call: str, timeout_s: float) -> ToolResult:
        """The result of a call that was requested. Raises TimeoutError."""
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
    last_sequence: int = 0
    n_facts: int = 0

    async def take(self) -> EpisodeState | None:
        """Append `EpisodeTaken` and return the state to go on from; None if the episode has ended or is somebody else's."""
        taken = EpisodeTaken(
            id=f"{self.request.episode}-taken-{self.request.attempt}",
            at_ns=self.platform.now_ns(),
            episode=self.request.episode,
            driver=self.driver,
            attempt=self.request.attempt,
            request=self.request,
        )
        try:
            self.last_sequence = await self.bus.append(taken, self.request.episode, expected=0)
            return self.agent.begin(self.start)[0]
        except ConflictError:
            return await self._take_over(taken)

    async def _take_over(self, taken: EpisodeTaken) -> EpisodeState | None:
        """Fold what is recorded and go on from there. A delivery of a request that is not newer changes nothing."""
        stored = await self.bus.read_key("trace", self.request.episode)
        held = [item.event for item in stored if isinstance(item.event, EpisodeTaken)]
        finished = any(isinstance(item.event, EpisodeFinished) for item in stored)
        if finished or not stored or max((item.attempt for item in held), default=-1) >= self.request.attempt:
            return None
        last_takes = stored[-MAX_IDLE_TAKES:]
        if len(last_takes) == MAX_IDLE_TAKES and all(isinstance(item.event, EpisodeTaken) for item in last_takes):
            await self._die("no_progress", f"{MAX_IDLE_TAKES} drivers in a row took it and recorded nothing more")
            return None
        try:
            self.last_sequence = await self.bus.append(taken, self.request.episode, expected=stored[-1].sequence)
        except ConflictError:
            return None
        self.n_facts = len(stored)
        try:
            return fold(self.agent, self.start, await self._facts(stored))
        except BlobMissingError as error:
            await self._die("blob_missing", str(error))
            return None

    async def _facts(self, stored: list[Stored]) -> list[Fact]:
        facts: list[Fact] = []
        for item in stored:
            if item.event is None:
                continue
            blob = item.event.blob if isinstance(item.event, ToolReturned) else None
            fact = fact_of(item.event, decode_result(await self.bus.get_blob(blob)) if blob else None)
            if fact is not None:
                facts.append(fact)
        return facts

    async def run(self, state: EpisodeState) -> None:
        """Go on from a state to the end and store it. Raises Abandoned, or BusError when the broker stays away."""
        begun_s = self.platform.monotonic()
        try:
            async with asyncio.timeout(self.deadline_s):
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
        await self._finish(state, int((self.platform.monotonic() - begun_s) * 1e9))

    async def _until_finished(self, state: EpisodeState, begun_s: float) -> EpisodeState:
        while state.finished is None:
            if not state.deadline_near and self.platform.monotonic() - begun_s > FORCE_AT * self.deadline_s:
                await self._append(
                    DeadlineNeared(id=self._event_id("deadline"), at_ns=self.platform.now_ns(), episode=self.request.episode)
                )
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
                await self._append(told)
                state = after
                await self.platform.fault("driver.tokens_appended")
        return state

    def _told(self, asked: GenerateRequest, chunk: GenerationChunk) -> TokensGenerated:
        return TokensGenerated(
            id=self._event_id("tokens"),
            at_ns=self.platform.now_ns(),
            episode=self.request.episode,
            request=asked.id,
            turn=asked.turn,
            offset=asked.n_held + chunk.offset,
            columns=chunk.columns,
            versions=chunk.versions,
            finish=chunk.finish,
            engine=chunk.engine,
            elapsed_ns=chunk.elapsed_ns,
        )

    async def _call_tool(self, state: EpisodeState, asked: ToolCall) -> EpisodeState:
        await self._append(
            ToolRequested(
                id=self._event_id("tool"),
                at_ns=self.platform.now_ns(),
                episode=self.request.episode,
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
        try:
            result = await self.services.tool_result(asked.id, self.tool_timeout_s)
        except TimeoutError:
            result = ToolResult(error="timeout", message=f"no result after {self.tool_timeout_s:g} s")
        await self._append(await self._returned(asked, result))
        state, _ = self.agent.apply(state, ToolReplied(call=asked.id, result=result))
        return state

    async def _returned(self, asked: ToolCall, result: ToolResult) -> ToolReturned:
        inline, blob = result, None
        if sum(len(document.text) for document in result.documents) * 2 > INLINE_BYTES:
            inline, blob = None, await self.bus.put_blob(self.request.episode, encode_result(result))
        return ToolReturned(
            id=self._event_id("returned"),
            at_ns=self.platform.now_ns(),
            episode=self.request.episode,
            call=asked.id,
            turn=asked.turn,
            result=inline,
            blob=blob,
        )

    async def _finish(self, state: EpisodeState, elapsed_ns: int) -> None:
        request, told = self.request, transcript(state)
        trajectory = Trajectory(episode=request.episode, segments=segments(state))
        blob = await self.bus.put_blob(request.episode, encode(trajectory))
        generated, generated_blob = told.generated, None
        if sum(map(len, generated)) * 2 > INLINE_BYTES:
            generated_blob = await self.bus.put_blob(request.episode, encode_generated(generated))
            generated = []
        await self.platform.fault("driver.blob_stored")
        await self._append(
            EpisodeFinished(
                id=self._event_id("finished"),
                at_ns=self.platform.now_ns(),
                episode=request.episode,
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
                elapsed_ns=elapsed_ns,
                oldest=told.oldest,
                meta=request.task.meta,
            )
        )

    async def drop(self, reason: str, message: str) -> None:
        """Give the episode the outcome `dropped`; nothing happens if it has one."""
        await append_outcome(self.bus, dropped(self.request, self.platform.now_ns(), reason, message))

    async def _die(self, reason: str, message: str) -> None:
        """Give the episode the outcome `dead`; nothing happens if it has one."""
        await append_outcome(self.bus, dead(self.request, self.platform.now_ns(), reason, message))

    async def _append(self, event: Event) -> None:
        try:
            self.last_sequence = await self.bus.append(event, self.request.episode, expected=self.last_sequence)
        except ConflictError as error:
            raise Abandoned(f"episode {self.request.episode} is held by another driver") from error
        self.n_facts += 1

    def _event_id(self, what: str) -> str:
        return f"{self.request.episode}-{self.request.attempt}-{self.n_facts}-{what}"
