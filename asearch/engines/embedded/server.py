"""The HTTP side of the embedded engine: SGLang's routes over one scheduler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from torch import Tensor

from asearch.engines.embedded.body import BadRequestError, Generation, Limits, read
from asearch.engines.embedded.chat_template import ChatTemplate
from asearch.engines.embedded.openai import OpenAiRoutes, refusal
from asearch.engines.embedded.options import Options
from asearch.engines.embedded.replies import Replies
from asearch.engines.embedded.request import Request
from asearch.engines.embedded.scheduler import Scheduler
from asearch.engines.embedded.updating import JoinBody, LeaveBody, ReceiveBody, Updates
from asearch.errors import InputError, TransferError
from asearch.models.config import ModelConfig
from asearch.models.decoder import Decoder
from asearch.models.weights import load_weights

log = logging.getLogger(__name__)
_PAUSE_MODES = ("abort", "retract", "in_place")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_encode = msgspec.json.Encoder().encode
_B = TypeVar("_B", bound=msgspec.Struct)


class _Pause(msgspec.Struct):
    mode: str = "abort"


class _Update(msgspec.Struct):
    model_path: str
    weight_version: str | None = None
    flush_cache: bool = True
    abort_all_requests: bool = False
    load_format: str | None = None


class _Abort(msgspec.Struct):
    rid: str | None = None
    abort_all: bool = False


class Server:
    """Routes of one model. `handle` never raises for what a client sends."""

    def __init__(self, options: Options, config: ModelConfig, limits: Limits, scheduler: Scheduler) -> None:
        self._options, self._config, self._limits, self._scheduler = options, config, limits, scheduler
        self._model_path, self._version = options.model_path, options.weight_version
        self._updating = asyncio.Lock()
        self._updates = Updates(config)
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/generate"): self._generate,
            ("POST", "/pause_generation"): self._pause,
            ("POST", "/continue_generation"): self._continue,
            ("POST", "/update_weights_from_disk"): self._update,
            ("POST", "/init_weights_update_group"): self._join_group,
            ("POST", "/destroy_weights_update_group"): self._leave_group,
            ("POST", "/begin_weight_update"): self._begin_update,
            ("POST", "/update_weights_from_distributed"): self._receive_update,
            ("POST", "/end_weight_update"): self._end_update,
            ("GET", "/weights_checksum"): self._weights_checksum,
            ("POST", "/abort_request"): self._abort,
            ("GET", "/model_info"): self._model_info,
            ("GET", "/get_model_info"): self._model_info,
            ("GET", "/server_info"): self._server_info,
            ("GET", "/get_server_info"): self._server_info,
        }
        openai = OpenAiRoutes(options.model_path, limits, scheduler, ChatTemplate.load(options.model_path))
        self._routes |= openai.routes()
        for path in ("/health", "/ready", "/health_generate"):
            self._routes["GET", path] = self._health
        for method in ("GET", "POST"):
            self._routes[method, "/flush_cache"] = self._flush

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one HTTP request."""
        handler = self._routes.get((request.method, request.path))
        if handler is None:
            known = any(path == request.path for _, path in self._routes)
            return refusal(405 if known else 404, f"no route {request.method} {request.path}")
        try:
            return await handler(request)
        except BadRequestError as error:
            return refusal(400, str(error))
        except TransferError as error:
            return _json({"success": False, "message": str(error)}, 400)
        except web.HTTPException as error:
            return refusal(error.status, error.reason)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("%s failed", request.path)
            return refusal(500, f"internal error: {type(error).__name__}: {error}")

    async def _generate(self, http: web.BaseRequest) -> web.StreamResponse:
        generation = read(await http.read(), self._limits)
        for request in generation.requests:
            self._scheduler.submit(request)
        try:
            if generation.stream:
                return await self._stream(http, generation)
            replies: list[dict[str, Any]] = []
            for request in generation.requests:
                while request.finish is None:
                    request.changed.clear()
                    await request.changed.wait()
                replies.append(self._replies(request, generation).next())
        finally:
            for request in generation.requests:
                self._scheduler.withdraw(request)
        failed = next((reply for reply in replies if _status(reply) >= 400), None)
        if failed is not None:
            return refusal(_status(failed), failed["meta_info"]["finish_reason"]["message"])
        return _json(replies if generation.batched else replies[0])

    async def _stream(self, http: web.BaseRequest, generation: Generation) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        try:
            if len(generation.requests) == 1:
                await self._stream_one(response, generation, generation.requests[0], None)
            else:
                async with asyncio.TaskGroup() as group:
                    for index, request in enumerate(generation.requests):
                        group.create_task(self._stream_one(response, generation, request, index))
            await response.write_eof(b"data: [DONE]\n\n")
        except* ConnectionError:
            log.debug("a client left its stream")
        except* Exception:
            # The status has been sent: a stream that breaks off is how the client learns of it.
            log.exception("a stream failed")
            if http.transport is not None:
                http.transport.abort()
        return response

    async def _stream_one(
        self, response: web.StreamResponse, generation: Generation, request: Request, index: int | None
    ) -> None:
        replies = self._replies(request, generation)
        ended = False
        while not ended:
            await request.changed.wait()
            request.changed.clear()
            ended = request.finish is not None
            reply = replies.next()
            if index is not None:
                reply["index"] = index
            await response.write(b"data: " + _encode(reply) + b"\n\n")

    def _replies(self, request: Request, generation: Generation) -> Replies:
        incremental = generation.stream and self._options.incremental_streaming_output
        return Replies(request, self._limits.tokenizer, generation.logprobs, incremental)

    async def _pause(self, http: web.BaseRequest) -> web.StreamResponse:
        mode = (await _read(http, _Pause)).mode
        if mode not in _PAUSE_MODES:
            raise BadRequestError(f"mode must be one of {', '.join(_PAUSE_MODES)}, not {mode!r}")
        await self._scheduler.pause(mode)
        return _json({"message": f"Generation paused ({mode}).", "status": "ok"})

    async def _continue(self, http: web.BaseRequest) -> web.StreamResponse:
        await self._scheduler.resume()
        return _json({"message": "Generation continues.", "status": "ok"})

    async def _update(self, http: web.BaseRequest) -> web.StreamResponse:
        body = await _read(http, _Update)
        if body.load_format not in (None, "auto", "safetensors"):
            raise BadRequestError(f"load_format {body.load_format!r} is not supported: only safetensors")
        async with self._updating:
            # Reading and checking happens beside the running requests; they stop only for the exchange itself.
            try:
                decoder = await asyncio.to_thread(self._load, body.model_path)
            except InputError as error:
                return _json({"success": False, "message": str(error), "num_paused_requests": 0}, 400)
            n_held = await self._scheduler.replace(decoder, body.weight_version, body.abort_all_requests)
            self._model_path = body.model_path
            self._updates.checksums = {}
            self._version = body.weight_version or self._version
        return _json({"success": True, "message": "Weights are updated.", "num_paused_requests": n_held})

    def _load(self, folder: str) -> Decoder:
        return self._decoder(load_weights(folder, self._config))

    async def _join_group(self, http: web.BaseRequest) -> web.StreamResponse:
        await asyncio.to_thread(self._updates.join, await _read(http, JoinBody))
        return _json({"success": True, "message": "The server is a member."})

    async def _leave_group(self, http: web.BaseRequest) -> web.StreamResponse:
        await asyncio.to_thread(self._updates.leave, (await _read(http, LeaveBody)).group_name)
        return _json({"success": True, "message": "The server has left."})

    async def _begin_update(self, http: web.BaseRequest) -> web.StreamResponse:
        self._updates.begin()
        return _json({"success": True, "message": "An update is open."})

    async def _receive_update(self, http: web.BaseRequest) -> web.StreamResponse:
        await asyncio.to_thread(self._updates.receive, await _read(http, ReceiveBody))
        return _json({"success": True, "message": "The tensors are here."})

    async def _end_update(self, http: web.BaseRequest) -> web.StreamResponse:
        async with self._updating:
            try:
                decoder = await asyncio.to_thread(self._received)
            except InputError as error:
                return _json({"success": False, "message": str(error)}, 400)
            await self._scheduler.replace(decoder, self._updates.version, False)
            self._version = self._updates.version or self._version
        return _json({"success": True, "message": "Weights are updated."})

    def _received(self) -> Decoder:
        return self._decoder(self._updates.end())

    def _decoder(self, tensors: dict[str, Tensor]) -> Decoder:
        return Decoder.from_tensors(self._config, tensors, self._limits.context_length, self._options.device)

    async def _weights_checksum(self, http: web.BaseRequest) -> web.StreamResponse:
        """xxh3-128 by tensor of what the last update from a group brought; empty if weights came from a folder since."""
        return _json({"checksums": self._updates.checksums})

    async def _abort(self, http: web.BaseRequest) -> web.StreamResponse:
        body = await _read(http, _Abort)
        if body.rid is None and not body.abort_all:
            raise BadRequestError("give rid or abort_all")
        self._scheduler.abort(None if body.abort_all else body.rid)
        return web.Response(status=200)

    async def _flush(self, http: web.BaseRequest) -> web.StreamResponse:
        if await self._scheduler.flush():
            return web.Response(text="Cache flushed.\n")
        return web.Response(text="Cache not flushed: requests are running.\n", status=400)

    async def _health(self, http: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=200 if self._scheduler.alive else 503)

    async def _model_info(self, http: web.BaseRequest) -> web.StreamResponse:
        info = {
            "model_path": self._model_path,
            "tokenizer_path": self._options.model_path,
            "is_generation": True,
            "weight_version": self._version,
            "architectures": [self._config.architecture],
            "vocab_size": self._config.vocab_size,
            "context_length": self._limits.context_length,
        }
        return _json(info)

    async def _server_info(self, http: web.BaseRequest) -> web.StreamResponse:
        info = asdict(self._options) | {"weight_version": self._version, "model_path": self._model_path}
        return _json(info | {"server": "asearch-embedded", "internal_states": [self._scheduler.counters()]})


def _status(reply: dict[str, Any]) -> int:
    return (reply["meta_info"]["finish_reason"] or {}).get("status_code") or 200


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


async def _read(http: web.BaseRequest, kind: type[_B]) -> _B:
    try:
        return msgspec.json.decode(await http.read() or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not a valid request: {error}") from error
