"""Owns one inference server: starts it, loads every published version into it, and streams its tokens to drivers."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from actors.runtime.actor import Actor, Context
from actors.runtime.bus import Incoming
from actors.runtime.hearing import HearingClock
from actors.runtime.inference_server import InferenceProcess
from actors.runtime.launching import inference_process, vocabulary_of
from actors.runtime.transfer.choosing import transfer_of
from actors.runtime.transfer.following import PolicyFollower
from actors.runtime.work_spans import Served, generate_span
from asearch.agents.packed import pack_ids, pack_logprobs, unpack_ids
from asearch.engines.client import GeneratedChunk
from asearch.engines.launch import Launch
from asearch.errors import BusError, EngineError
from schemas.commands import Abort, Generate, GenerationChunk, Heartbeat, Lease
from schemas.events import PolicyPublished
from schemas.records import Column, Version, VersionRun

MAX_PENDING = 2048
VERSION_WAIT_S = 60.0
STALE_WAIT_S = 2.0
"""How long a request that may be answered under older weights waits for those that it asks for."""
HAND_OVER_S, HAND_OVER_AGAIN_S = 3.0, 0.2
"""How long an engine that leaves waits for the last tokens of its server, and how often it asks for them."""
LAPSE_S = 10.0
"""A driver that has not named an episode in its lease for so long, while others were heard, does not wait for its tokens."""


@dataclass
class _Serving:
    """A generation under way. `named_s` is when its driver last named the episode, by the clock of what is heard."""

    command: Generate
    task: asyncio.Task[None]
    named_s: float
    is_sent: bool = False
    """Whether the server has it."""
    is_leaving: bool = False
    """Whether it is being handed over: the server is asked once at a time."""


class InferenceServer(Protocol):
    """What the actor needs of a server: `EngineClient` speaks to one over HTTP."""

    def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], *, rid: str, timeout_s: float
    ) -> AsyncGenerator[GeneratedChunk]:
        """The tokens that follow. Raises EngineError."""
        ...

    async def pause(self, mode: str = "retract") -> None:
        """Suspend generation."""
        ...

    async def resume(self) -> None:
        """End a pause."""
        ...

    async def update_weights(self, path: str, version: str) -> None:
        """Load the weights at `path` and name them `version`. Raises EngineError."""
        ...

    async def abort(self, rid: str) -> None:
        """End a request: its stream brings the tokens it had, and finishes with `abort`. Raises EngineError."""
        ...


class Engine(Actor):
    """The actor in front of one server. It buffers no tokens: what a driver has not got, it asks for again."""

    kind = "engine"

    def __init__(
        self,
        context: Context,
        model_dir: str,
        server: InferenceServer | None = None,
        launch: Callable[[], Launch] | None = None,
        weights_dir: Path | None = None,
    ) -> None:
        """`launch` starts another server than the settings name; with `server` none is started at all.

        Weights that are pulled lie below `weights_dir`, the run's folder unless given.
        """
        super().__init__(context)
        self._keeper: InferenceProcess | None = None
        if server is None:
            self._keeper = inference_process(
                context, model_dir, launch, lambda: self._follower.is_loading, lambda text: self.become("starting", text)
            )
        self._server = server
        self._n_vocabulary = vocabulary_of(model_dir)
        self._transfer = transfer_of(context, weights_dir or context.run_dir / "weights")
        self._follower = PolicyFollower(self.bus, self.platform, self._transfer, self._on_loaded)
        self._running: dict[str, _Serving] = {}
        self._clock = HearingClock(context.platform)
        self._loaded = asyncio.Condition()
        self._n_generated = 0
        self._n_requests = 0
        self._n_failed = 0
        self._n_lapsed = 0
        self._n_handed_over = 0
        self._n_stale = 0

    def gauges(self) -> dict[str, float]:
        """Tokens and requests so far, requests under way, failed, given up with their driver; what updates cost.

        `n_places`: requests that the server runs at once; `n_pending`: what is above waits. Requests handed over to other
        engines, and answered under older weights than they asked for.
        """
        n_places = self.settings.engine.max_running_requests
        return {
            "n_tokens": self._n_generated,
            "n_requests": self._n_requests,
            "n_running": len(self._running),
            "n_failed": self._n_failed,
            "n_lapsed": self._n_lapsed,
            "n_places": n_places,
            "n_pending": max(0, len(self._running) - n_places),
            "n_handed_over": self._n_handed_over,
            "n_stale": self._n_stale,
            **self._follower.gauges(),
            "n_server_starts": self._keeper.n_starts if self._keeper is not None else 0,
        }

    async def start(self) -> None:
        """Start the server, load the newest published version, then take requests."""
        if self._server is not None:
            self._client = self._server
        elif self._keeper is not None:
            self.become("starting", "the inference server")
            self._client = await self._keeper.start()
        self._follower.attach(self._client)
        self.become("starting", "the first published version")
        self._follower.start(self.spawn)
        await self._until_loaded()
        await self.bus.subscribe(Lease, ">", self._on_lease)
        await self.bus.subscribe(Heartbeat, self.context.actor_id, self._on_own_heartbeat)
        await self.bus.subscribe(Generate, self.context.actor_id, self._on_generate)
        await self.bus.subscribe(Abort, self.context.actor_id, self._on_abort)

    async def work(self) -> None:
        """Watch the server; one that ends or hangs is started again, within limits."""
        if self._keeper is None:
            await self.wait_stopping()
            return
        while True:
            why = await self._keeper.failure()
            await self._replace_server(self._keeper, why)

    async def _replace_server(self, keeper: InferenceProcess, why: str) -> None:
        """Give up what was under way, start the server again, and serve once it has the newest weights."""
        self._follower.detach()
        self.version = None
        self.become("starting", "another inference server")
        for serving in list(self._running.values()):
            serving.task.cancel()
            await self._fail(serving.command, why)
        self._client = await keeper.restart(why)
        self.become("starting", "the newest version")
        self._follower.attach(self._client)
        await self._until_loaded()
        self.become("ready")

    async def _until_loaded(self) -> None:
        """Return once the server has a published version. Raises EngineError."""
        limit_s = self.settings.engine.start_limit_s
        try:
            async with asyncio.timeout(limit_s), self._loaded:
                await self._loaded.wait_for(lambda: self.version is not None)
        except TimeoutError:
            raise EngineError(
                f"no published version was loaded within {limit_s:g} s (engine.start_timeout_s): see the trainer's log, and "
                "above for versions that were refused or did not arrive"
            ) from None

    async def abort_start(self) -> None:
        """End the server."""
        if self._keeper is not None:
            await self._keeper.stop()

    async def drain(self) -> None:
        """Hand every request over with the tokens so far, and stop the server."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                while self._running:
                    # Again and again: a request that was on its way to the server could not be ended there.
                    await asyncio.gather(*(self._hand_over(serving) for serving in list(self._running.values())))
                    await self.platform.sleep(HAND_OVER_AGAIN_S)
        for serving in list(self._running.values()):
            serving.task.cancel()
        await self._transfer.close()
        if self._keeper is not None:
            await self._keeper.stop()

    # --- weights ---

    async def _on_loaded(self, published: PolicyPublished) -> None:
        async with self._loaded:
            self.version = published.version
            self._loaded.notify_all()

    # --- generation ---

    async def _on_generate(self, incoming: Incoming) -> None:
        command = incoming.message
        if not isinstance(command, Generate) or command.request in self._running:
            return
        refusal = self._refusal(command)
        if refusal:
            await self._fail(command, refusal)
            return
        if self.stopping:
            await self._ask_elsewhere(command)
            return
        served = Served(self.platform.now_ns(), incoming.traceparent)
        task = self.spawn(self._generate(command, served), f"generate {command.request}")
        self._running[command.request] = _Serving(command, task, self._clock.now_s)
        # Not by the task itself: one that is cancelled before it first runs runs nothing at all.
        task.add_done_callback(lambda _: self._running.pop(command.request, None))

    def _refusal(self, command: Generate) -> str:
        """Why a request is not passed on; empty if it is. SGLang's scheduler dies of a token id outside the vocabulary."""
        if not self._follower.is_attached:
            return "the engine's server is being started again"
        if len(self._running) >= MAX_PENDING:
            return "the engine has too many requests"
        return refuse_ids(unpack_ids(command.prompt.data), self._n_vocabulary)

    async def _on_abort(self, incoming: Incoming) -> None:
        command = incoming.message
        if isinstance(command, Abort) and (serving := self._running.get(command.request)) is not None:
            if not command.hand_over:
                serving.task.cancel()
            elif not serving.is_leaving:
                # By a task of its own: a server that answers slowly must not keep the next commands waiting.
                serving.is_leaving = True
                self.spawn(self._hand_over(serving), f"hand over {command.request}")

    async def _hand_over(self, serving: _Serving) -> None:
        """End a generation at its newest token; the driver asks another engine for the rest."""
        if not serving.is_sent:
            serving.task.cancel()
            await self._ask_elsewhere(serving.command)
            return
        try:
            await self._client.abort(serving.command.request)
        except EngineError as error:
            self.log.warning("generation not ended", request=serving.command.request, error=str(error))
        except Exception:
            # One request must not end the engine of all others.
            self.log.exception("generation not ended", request=serving.command.request)
        finally:
            serving.is_leaving = False

    async def _on_lease(self, incoming: Incoming) -> None:
        """A driver names its episodes; its generations for others are nobody's after a while."""
        lease = incoming.message
        self._clock.heard()
        if isinstance(lease, Lease):
            episodes = frozenset(lease.episodes)
            for serving in self._running.values():
                if serving.command.driver == lease.driver and serving.command.episode in episodes:
                    serving.named_s = self._clock.now_s

    async def _on_own_heartbeat(self, incoming: Incoming) -> None:
        """The broker passes messages on: whoever stays silent meanwhile is gone."""
        self._clock.heard()
        for serving in list(self._running.values()):
            if serving.command.driver and self._clock.now_s - serving.named_s > LAPSE_S:
                self._n_lapsed += 1
                command = serving.command
                self.log.info("generation given up: its driver is gone", episode=command.episode, request=command.request)
                serving.task.cancel()
                # Should the driver wake up, it need not wait for the silence to end.
                await self._fail(serving.command, "the driver's lease has lapsed")

    async def _generate(self, command: Generate, served: Served) -> None:
        begun_s = self.platform.monotonic()
        self._n_requests += 1
        try:
            async with asyncio.timeout(command.max_wait_ns / 1e9):
                await self._wait_for_step(command)
                if (serving := self._running.get(command.request)) is not None:
                    serving.is_sent = True
                await self._stream(command, begun_s, served)
        except (EngineError, BusError, TimeoutError, aiohttp.ClientError) as error:
            self._n_failed += 1
            served.error = str(error) or type(error).__name__
            await self._fail(command, served.error)
        except Exception as error:
            # One request must not end the engine of all others.
            self.log.exception("generation failed", episode=command.episode, request=command.request)
            self._n_failed += 1
            served.error = repr(error)
            await self._fail(command, served.error)
        finally:
            if self.tracing.on:
                self.tracing.emit(generate_span(self.context.run, command, served, self.platform.now_ns()))

    async def _stream(self, command: Generate, begun_s: float, served: Served) -> None:
        parameters = {
            "max_new_tokens": command.max_new_tokens,
            "temperature": command.temperature,
            "top_p": command.top_p,
            "top_k": command.top_k,
            "stop": command.stop,
            "sampling_seed": command.seed,
        }
        ids = unpack_ids(command.prompt.data)
        timeout_s = command.max_wait_ns / 1e9
        chunks = self._client.generate(ids, parameters, rid=command.request, timeout_s=timeout_s)
        async with aclosing(chunks):
            async for chunk in chunks:
                await self._send(command, chunk, int((self.platform.monotonic() - begun_s) * 1e9), served.traceparent)
                if self.tracing.on:
                    served.took(chunk, self.platform.now_ns())

    async def _wait_for_step(self, command: Generate) -> None:
        """Wait for the weights that were asked for. Where older ones will do, an engine that is slow serves under these."""
        step = command.min_step
        if self.version is not None and self.version.step >= step:
            return
        try:
            async with asyncio.timeout(STALE_WAIT_S if command.may_be_stale else VERSION_WAIT_S), self._loaded:
                await self._loaded.wait_for(lambda: self.version is not None and self.version.step >= step)
        except TimeoutError:
            if not command.may_be_stale or self.version is None:
                raise EngineError(f"no version {step} within {VERSION_WAIT_S:g} s: the engine is at {self.version}") from None
            self._n_stale += 1

    async def _send(self, command: Generate, chunk: GeneratedChunk, elapsed_ns: int, traceparent: str | None) -> None:
        n_tokens, ends_early = len(chunk.ids), chunk.finish == "abort"
        self._n_generated += n_tokens
        self._n_handed_over += ends_early
        await self.bus.publish(
            GenerationChunk(
                request=command.request,
                offset=chunk.offset,
                columns={
                    "ids": Column(dtype="u4", shape=(n_tokens,), data=pack_ids(chunk.ids)),
                    "logprobs": Column(dtype="f4", shape=(n_tokens,), data=pack_logprobs(chunk.logprobs)),
                },
                versions=[
                    VersionRun(version=version_of(span.version), start=span.start - chunk.offset, end=span.end - chunk.offset)
                    for span in chunk.versions
                ],
                engine=self.context.actor_id,
                finish=None if ends_early else chunk.finish,
                elapsed_ns=elapsed_ns,
                ask_elsewhere=ends_early,
            ),
            subject=command.reply_to,
            traceparent=traceparent,
        )

    async def _fail(self, command: Generate, error: str) -> None:
        await self._say_without_tokens(command, error=error)

    async def _ask_elsewhere(self, command: Generate) -> None:
        self._n_handed_over += 1
        await self._say_without_tokens(command, ask_elsewhere=True)

    async def _say_without_tokens(self, command: Generate, *, error: str | None = None, ask_elsewhere: bool = False) -> None:
        chunk = GenerationChunk(
            request=command.request,
            offset=0,
            columns={},
            versions=[],
            engine=self.context.actor_id,
            error=error,
            ask_elsewhere=ask_elsewhere,
        )
        with suppress(BusError):
            await self.bus.publish(chunk, subject=command.reply_to)


def refuse_ids(ids: Sequence[int], n_vocabulary: int | None) -> str:
    """Why these prompt ids must not reach a server; empty if they may. `n_vocabulary` None: the model is not known."""
    if not ids:
        return "the prompt is empty"
    if n_vocabulary is None or 0 <= min(ids) <= max(ids) < n_vocabulary:
        return ""
    odd = next(each for each in ids if not 0 <= each < n_vocabulary)
    return f"token id {odd} of the prompt is outside the model's vocabulary of {n_vocabulary}"


def version_of(text: str) -> Version:
    """The policy version that a server's version string names. Raises EngineError."""
    try:
        return Version.parse(text)
    except ValueError as error:
        raise EngineError(f"the server names a weight version {text!r} that is none of ours") from error
