"""OpenAI's `/v1` routes over the scheduler: chat and text completions, so that auxiliary models and agents run on a laptop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from aiohttp import web

from asearch.engines.embedded.body import BadRequestError, Limits, read
from asearch.engines.embedded.chat_template import ChatTemplate
from asearch.engines.embedded.replies import Replies
from asearch.engines.embedded.request import Request
from asearch.engines.embedded.scheduler import Scheduler

_encode = msgspec.json.Encoder().encode
_ROLES = Literal["system", "user", "assistant", "tool", "developer"]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Message(msgspec.Struct):
    role: _ROLES
    content: str | list[dict[str, Any]] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    messages: list[_Message] | None = None
    prompt: str | list[int] | None = None
    model: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Completion:
    """One answer under way."""

    body: _Body
    request: Request
    chat: bool
    created_s: int

    def reply(self, choice: dict[str, Any] | None, usage: dict[str, int] | None, part: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if part else "chat.completion") if self.chat else "text_completion"
        return {
            "id": self.request.rid,
            "object": kind,
            "created": self.created_s,
            "model": self.body.model,
            "choices": [] if choice is None else [{"index": 0, "logprobs": None} | choice],
            "usage": usage,
        }

    def usage(self) -> dict[str, int]:
        n_prompt, n_output = len(self.request.prompt), self.request.n_ready
        return {"prompt_tokens": n_prompt, "completion_tokens": n_output, "total_tokens": n_prompt + n_output}


class OpenAiRoutes:
    """Routes of one model; `name` is what it is listed as. Requests may name any model."""

    def __init__(self, name: str, limits: Limits, scheduler: Scheduler, template: ChatTemplate) -> None:
        self._name, self._limits, self._scheduler, self._template = name, limits, scheduler, template

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Handlers by method and path."""
        return {
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._text,
        }

    async def _models(self, http: web.BaseRequest) -> web.StreamResponse:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "asearch"}
        return _json({"object": "list", "data": [model | {"max_model_len": self._limits.context_length}]})

    async def _chat(self, http: web.BaseRequest) -> web.StreamResponse:
        body = _read(await http.read())
        if not body.messages:
            raise BadRequestError("messages must hold at least one message")
        messages = [{"role": message.role, "content": _text_of(message)} for message in body.messages]
        return await self._answer(http, body, self._encoded(self._template.render(messages)), chat=True)

    async def _text(self, http: web.BaseRequest) -> web.StreamResponse:
        body = _read(await http.read())
        if body.prompt is None:
            raise BadRequestError("give a prompt: a text, or a list of token ids")
        ids = self._encoded(body.prompt) if isinstance(body.prompt, str) else body.prompt
        return await self._answer(http, body, ids, chat=False)

    def _encoded(self, text: str) -> list[int]:
        if self._limits.tokenizer is None:
            raise BadRequestError("the model folder has no tokenizer: send token ids to /generate")
        return self._limits.tokenizer.encode(text)

    async def _answer(self, http: web.BaseRequest, body: _Body, ids: list[int], chat: bool) -> web.StreamResponse:
        n_left = self._limits.context_length - len(ids)
        if n_left < 1:
            raise BadRequestError(f"the prompt has {len(ids)} tokens, the context length is {self._limits.context_length}")
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        params = {
            "max_new_tokens": n_left if limit is None else limit,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "stop": body.stop,
            "sampling_seed": body.seed,
        }
        # The checks are those of /generate.
        raw = _encode({"input_ids": ids, "sampling_params": params, "stream": body.stream})
        request = read(raw, self._limits).requests[0]
        completion = _Completion(body, request, chat, int(time.time()))
        self._scheduler.submit(request)
        try:
            return await (self._stream(http, completion) if body.stream else self._whole(completion))
        finally:
            self._scheduler.withdraw(request)

    async def _whole(self, completion: _Completion) -> web.StreamResponse:
        request = completion.request
        while request.finish is None:
            request.changed.clear()
            await request.changed.wait()
        status = request.finish.get("status_code") or 200
        if status >= 400:
            return refusal(status, str(request.finish.get("message")))
        text = Replies(request, self._limits.tokenizer, False, False).next()["text"]
        said = {"message": {"role": "assistant", "content": text}} if completion.chat else {"text": text}
        return _json(completion.reply(said | {"finish_reason": request.finish["type"]}, completion.usage(), part=False))

    async def _stream(self, http: web.BaseRequest, completion: _Completion) -> web.StreamResponse:
        request, options = completion.request, completion.body.stream_options
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        replies = Replies(request, self._limits.tokenizer, False, False)
        n_sent, ended = 0, False
        # Text that may turn out to begin a stop string is not sent before it is known not to.
        n_held = max((len(stop.decode()) for stop in request.sampling.stop), default=1) - 1
        try:
            while not ended:
                await request.changed.wait()
                request.changed.clear()
                ended = request.finish is not None
                text = replies.next()["text"]
                end = len(text) if ended else max(n_sent, len(text) - n_held)
                finish = request.finish["type"] if request.finish is not None else None
                choice = _part(completion.chat, text[n_sent:end], finish, is_first=n_sent == 0)
                if end > n_sent or ended:
                    await _send(response, completion.reply(choice, None, part=True))
                n_sent = max(n_sent, end)
            if options is not None and options.include_usage:
                await _send(response, completion.reply(None, completion.usage(), part=True))
            await response.write_eof(b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # the client has left; its request is withdrawn
        return response


def _part(chat: bool, text: str, finish: str | None, is_first: bool) -> dict[str, Any]:
    if not chat:
        return {"text": text, "finish_reason": finish}
    delta = {"role": "assistant", "content": text} if is_first else {"content": text}
    return {"delta": delta, "finish_reason": finish}


def _read(raw: bytes) -> _Body:
    try:
        body = msgspec.json.decode(raw, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not a valid request: {error}") from error
    wanted = {
        "n": body.n not in (None, 1),
        "logprobs": bool(body.logprobs),
        "tools": bool(body.tools),
        "frequency_penalty": bool(body.frequency_penalty),
        "presence_penalty": bool(body.presence_penalty),
        "response_format": body.response_format is not None and body.response_format.get("type") != "text",
    }
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        raise BadRequestError(f"{name} is not supported by this server")
    return body


def _text_of(message: _Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in message.content):
        raise BadRequestError("this server takes messages of text only")
    return "".join(part["text"] for part in message.content)


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + _encode(event) + b"\n\n")


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def refusal(status: int, message: str) -> web.Response:
    """An error in OpenAI's shape, which SGLang's own routes share."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
