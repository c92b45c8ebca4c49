"""Client of SGLang's HTTP interface: the embedded engine and SGLang itself answer it alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aiohttp
import msgspec

from asearch.engines.chunks import Chunks, Event, GeneratedChunk, VersionSpan, message_of
from asearch.errors import EngineError

_CALL_TIMEOUT_S = 30.0
_UPDATE_TIMEOUT_S = 300.0
_N_HOT, _HOT, _MAX_DIFFERENCE = 16, 5.0, 0.25
"""Tokens that are sampled to see what log-probabilities are, their temperature, and by how much two passes may differ."""
_MAX_HELD_S = 20.0
"""Tokens whose version the server has not told for so long are had by ending the request: it is asked for again with them."""
_LINE_BYTES = 64 << 20
"""Longest event of a stream: a cumulative one repeats all tokens and log-probabilities so far."""


__all__ = ["EngineClient", "GeneratedChunk", "VersionSpan"]

_event = msgspec.json.Decoder(Event)


class _HeldByRank(msgspec.Struct):
    checksums: dict[str, str]


class EngineClient:
    """Calls one server. The session is the caller's; every call has a deadline and raises `EngineError`."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._base = base_url.rstrip("/")
        self._session = session
        self._n_changing = 0
        self._n_changes = 0
        """Pauses and loads begun and ended: tokens of a request that has seen none of them are of one version."""

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        *,
        rid: str,
        timeout_s: float,
        idle_timeout_s: float | None = None,
    ) -> AsyncGenerator[GeneratedChunk]:
        """Streams the tokens that follow `input_ids`; the last chunk has `finish` set.

        `timeout_s` bounds the whole call, `idle_timeout_s` the wait for any one event. Leaving the iteration early
        closes the connection, which aborts the request. Raises `EngineError` for a refusal, a broken stream, or tokens
        without finite log-probabilities and versions.
        """
        body = {
            "input_ids": list(input_ids),
            "sampling_params": dict(sampling_params),
            "rid": rid,
            "stream": True,
            "return_logprob": True,
        }
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_read=idle_timeout_s)
        n_changes = -1 if self._n_changing else self._n_changes
        chunks = Chunks(lambda: self._n_changes == n_changes)
        clock, held_s = asyncio.get_running_loop().time, float("inf")
        async with self._call("POST", "/generate", body, timeout) as response:
            async for event in _events(response):
                chunk = chunks.take(event)
                if chunk is not None:
                    held_s = float("inf")
                    yield chunk
                    if chunk.finish is not None:
                        return
                elif held_s == float("inf"):
                    held_s = clock()
                elif held_s > 0 and clock() - held_s > _MAX_HELD_S:
                    held_s = 0.0
                    await self.abort(rid)
        raise EngineError(f"the stream of request {rid} from {self._base} ended without a finish reason")

    async def pause(self, mode: str = "retract") -> None:
        """Suspends generation; `retract` makes the cache flushable, `abort` ends all requests, `in_place` neither."""
        with self._changing():
            await self._json("POST", "/pause_generation", {"mode": mode})

    async def resume(self) -> None:
        """Ends a pause."""
        with self._changing():
            await self._json("POST", "/continue_generation", {"torch_empty_cache": False})

    async def update_weights(self, path: str, version: str, timeout_s: float = _UPDATE_TIMEOUT_S) -> None:
        """Loads the weights folder `path` and names them `version`; on failure the server keeps what it had."""
        body = {"model_path": path, "weight_version": version, "flush_cache": True}
        with self._changing():
            reply = await self._json("POST", "/update_weights_from_disk", body, timeout_s)
        if not reply.get("success"):
            raise EngineError(f"{self._base} did not load {path}: {reply.get('message')}")

    async def check_logprobs(self, token: int = 0) -> None:
        """Raises EngineError where log-probabilities are those after temperature, which the trainer's are not.

        Some tokens are sampled hot and then scored as a prompt, of which the log-probabilities are always the model's own.
        """
        prompt = [token] * 4
        hot = {"max_new_tokens": _N_HOT, "temperature": _HOT, "ignore_eos": True}
        sampled = await self._logprobs({"input_ids": prompt, "sampling_params": hot}, "output_token_logprobs")
        ids = prompt + [each[1] for each in sampled]
        cold = {"max_new_tokens": 1, "temperature": 1.0, "ignore_eos": True}
        scored = await self._logprobs({"input_ids": ids, "sampling_params": cold, "logprob_start_len": 0}, "input_token_logprobs")
        pairs = zip(sampled, scored[-_N_HOT:], strict=True)
        difference = sum(abs((one[0] or 0.0) - (other[0] or 0.0)) for one, other in pairs) / _N_HOT
        if difference > _MAX_DIFFERENCE:
            raise EngineError(
                f"{self._base} returns log-probabilities after temperature (off by {difference:.2f} at {_HOT:g}); the trainer "
                "needs the model's own: start the server with SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment"
            )

    async def _logprobs(self, body: dict[str, Any], name: str) -> list[tuple[float | None, int, Any]]:
        reply = await self._json("POST", "/generate", body | {"return_logprob": True})
        try:
            return msgspec.convert(reply["meta_info"][name], list[tuple[float | None, int, Any]])
        except (KeyError, TypeError, msgspec.MsgspecError) as error:
            raise EngineError(f"{self._base}/generate answered without {name}") from error

    async def join_update_group(
        self, address: str, port: int, rank: int, world_size: int, group: str, backend: str, timeout_s: float
    ) -> None:
        """Makes the server a member of a collective in which weights are broadcast; waits until all members are there."""
        body = {"master_address": address, "master_port": port, "rank_offset": rank, "world_size": world_size}
        body |= {"group_name": group, "backend": backend, "timeout_s": timeout_s}
        await self._agreed("/init_weights_update_group", body, timeout_s + _CALL_TIMEOUT_S)

    async def leave_update_group(self, group: str) -> None:
        """Ends the membership."""
        await self._agreed("/destroy_weights_update_group", {"group_name": group}, _CALL_TIMEOUT_S)

    async def receive_weights(
        self, group: str, tensors: Sequence[tuple[str, str, Sequence[int]]], version: str, timeout_s: float
    ) -> None:
        """Takes a whole version from the group: (name, dtype as torch names it, shape) in the order in which they are sent.

        A server that fails under way may have part of it: it must not serve before it has loaded a version whole.
        """
        names, dtypes, shapes = ([each[i] for each in tensors] for i in range(3))
        body = {"names": names, "dtypes": dtypes, "shapes": shapes, "group_name": group, "weight_version": version}
        with self._changing():
            await self._agreed("/begin_weight_update", {"selector": "all"}, _CALL_TIMEOUT_S)
            try:
                await self._agreed("/update_weights_from_distributed", body | {"flush_cache": True}, timeout_s + _CALL_TIMEOUT_S)
            except BaseException:
                with suppress(EngineError):  # it would hide why
                    await self._agreed("/end_weight_update", {}, timeout_s)
                raise
            await self._agreed("/end_weight_update", {}, timeout_s)

    async def received_checksums(self) -> dict[str, str]:
        """xxh3-128 by tensor of the weights that the server has received. Raises EngineError where it cannot tell them."""
        reply = await self._json("GET", "/weights_checksum", None, _UPDATE_TIMEOUT_S)
        try:
            return msgspec.convert(reply.get("checksums"), dict[str, str])
        except msgspec.ValidationError as error:
            raise EngineError(f"{self._base} does not tell the checksums of its weights: {error}") from error

    async def held_checksums(self) -> dict[str, str]:
        """SGLang's checksum of each parameter that it holds (`asearch.weights.sglang`); one rank alone. Raises EngineError."""
        reply = await self._json("POST", "/weights_checker", {"action": "checksum"}, _UPDATE_TIMEOUT_S)
        try:
            (rank,) = msgspec.convert(reply.get("ranks"), list[_HeldByRank])
        except (msgspec.ValidationError, ValueError) as error:
            raise EngineError(f"{self._base} does not tell the checksums of one rank's parameters: {error}") from error
        return rank.checksums

    async def _agreed(self, path: str, body: object, timeout_s: float) -> None:
        reply = await self._json("POST", path, body, timeout_s)
        if not reply.get("success"):
            raise EngineError(f"{self._base}{path}: {reply.get('message')}")

    async def abort(self, rid: str) -> None:
        """Ends a request; its stream still brings the tokens it had. Harmless for an unknown id."""
        async with self._call("POST", "/abort_request", {"rid": rid, "abort_all": False}, _timeout(_CALL_TIMEOUT_S)):
            pass

    async def abort_all(self) -> None:
        """Ends all requests of the server."""
        async with self._call("POST", "/abort_request", {"rid": "", "abort_all": True}, _timeout(_CALL_TIMEOUT_S)):
            pass

    async def flush_cache(self) -> None:
        """Forgets kept prefixes; refused by the server while requests run."""
        async with self._call("POST", "/flush_cache", {}, _timeout(_CALL_TIMEOUT_S)):
            pass

    async def health(self, timeout_s: float = 5.0) -> bool:
        """Whether the server answers that it is well; never raises. SGLang generates a token for it, but not while paused."""
        return await self._answers("/health", timeout_s)

    async def is_ready(self, timeout_s: float = 5.0) -> bool:
        """Whether the server has loaded its model, is well and not paused; never raises. Nothing is generated."""
        return await self._answers("/ready", timeout_s)

    async def has_model(self, timeout_s: float = 5.0) -> bool:
        """Whether the server has loaded its model; never raises."""
        return await self._answers("/model_info", timeout_s)

    async def _answers(self, path: str, timeout_s: float) -> bool:
        try:
            async with self._call("GET", path, None, _timeout(timeout_s)):
                return True
        except EngineError:
            return False

    async def model_info(self) -> dict[str, Any]:
        """`model_path`, `weight_version` and more."""
        return await self._json("GET", "/model_info", None)

    async def server_info(self) -> dict[str, Any]:
        """Settings and counters of the server."""
        return await self._json("GET", "/server_info", None)

    @contextmanager
    def _changing(self) -> Generator[None]:
        """Around every call that may part the tokens of a request into two versions."""
        self._n_changing += 1
        self._n_changes += 1
        try:
            yield
        finally:
            self._n_changing -= 1
            self._n_changes += 1

    async def _json(self, method: str, path: str, body: object, timeout_s: float = _CALL_TIMEOUT_S) -> dict[str, Any]:
        async with self._call(method, path, body, _timeout(timeout_s)) as response:
            try:
                return msgspec.json.decode(await response.read(), type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise EngineError(f"{self._base}{path} answered with something that is not JSON: {error}") from error

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, body: object, timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self._base + path, data=data, headers=headers, timeout=timeout, read_bufsize=_LINE_BYTES
            ) as response:
                if response.status != 200:
                    text = (await response.read())[:2000].decode(errors="replace")
                    raise EngineError(f"{self._base}{path} answered {response.status}: {message_of(text)}")
                yield response
        except TimeoutError as error:
            raise EngineError(f"{self._base}{path} did not answer in time ({timeout.total} s)") from error
        except aiohttp.ClientError as error:
            raise EngineError(f"{self._base}{path} could not be reached: {error or type(error).__name__}") from error


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[Event]:
    while line := await response.content.readline():
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        try:
            yield _event.decode(payload)
        except msgspec.MsgspecError as error:
            raise EngineError(f"an event of the stream is malformed: {error}") from error


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s)
