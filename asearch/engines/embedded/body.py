"""What `/generate` takes: decoding and checking of its JSON body."""

from __future__ import annotations

import itertools
import time
import uuid
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from asearch.engines.embedded.request import Request, Sampling
from asearch.errors import EngineError
from asearch.models.tokenizer import Tokenizer

_GREEDY_BELOW = 1e-6
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "regex": (None,),
    "json_schema": (None,),
    "ebnf": (None,),
    "structural_tag": (None,),
    "logit_bias": (None, {}),
    "stop_regex": (None,),
    "custom_params": (None, {}),
    "no_stop_trim": (False,),
    "spaces_between_special_tokens": (True, False),
    "skip_special_tokens": (True, False),
}
"""Parameters of SGLang that this server does not act on, with the values that ask for nothing."""


class BadRequestError(EngineError):
    """The client's mistake; answered with status 400 and this text."""


class _Sampling(msgspec.Struct, forbid_unknown_fields=True):
    max_new_tokens: int | None = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    sampling_seed: int | None = None
    n: Any = 1
    min_p: Any = 0
    frequency_penalty: Any = 0
    presence_penalty: Any = 0
    repetition_penalty: Any = 1
    regex: Any = None
    json_schema: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    logit_bias: Any = None
    stop_regex: Any = None
    custom_params: Any = None
    no_stop_trim: Any = False
    spaces_between_special_tokens: Any = True
    skip_special_tokens: bool = True


class _Body(msgspec.Struct):
    input_ids: list[int | list[int]] | None = None
    text: str | list[str] | None = None
    rid: str | list[str] | None = None
    sampling_params: _Sampling | list[_Sampling] | None = None
    return_logprob: bool | list[bool] = False
    logprob_start_len: int | None = -1
    top_logprobs_num: int | None = 0
    token_ids_logprob: list[int] | None = None
    stream: bool = False
    lora_path: Any = None
    input_embeds: Any = None
    image_data: Any = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked body: the requests, and how to answer them."""

    requests: list[Request]
    batched: bool
    """Whether the reply is a list."""
    stream: bool
    logprobs: bool


@dataclass(slots=True)
class Limits:
    """What requests are checked against."""

    n_vocab: int
    context_length: int
    max_total_tokens: int
    eos_ids: frozenset[int]
    tokenizer: Tokenizer | None
    seeds: itertools.count[int]
    """Seeds of requests that bring none."""


_decoder = msgspec.json.Decoder(_Body)


def read(raw: bytes, limits: Limits) -> Generation:
    """Checks a body and makes its requests. Raises `BadRequestError`."""
    try:
        body = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not a valid request: {error}") from error
    _refuse(body)
    prompts, batched = _prompts(body, limits)
    params = body.sampling_params or _Sampling()
    listed = params if isinstance(params, list) else [params] * len(prompts)
    rids = body.rid if isinstance(body.rid, list) else _rids(body.rid, len(prompts))
    if len(listed) != len(prompts) or len(rids) != len(prompts):
        raise BadRequestError("rid and sampling_params must be single or have one entry per prompt")
    now = time.time()
    requests: list[Request] = []
    for prompt, one, rid in zip(prompts, listed, rids, strict=True):
        sampling = _sampling(one, limits)
        _check_lengths(prompt, sampling, limits)
        requests.append(Request(rid, prompt, sampling, body.stream, now))
    logprobs = all(body.return_logprob) if isinstance(body.return_logprob, list) else body.return_logprob
    return Generation(requests, batched, body.stream, logprobs)


def _refuse(body: _Body) -> None:
    if body.lora_path or body.input_embeds or body.image_data:
        raise BadRequestError("lora_path, input_embeds and image_data are not supported by this server")
    if (body.logprob_start_len if body.logprob_start_len is not None else -1) >= 0:
        raise BadRequestError("log-probabilities of the prompt are not supported: leave logprob_start_len at -1")
    if body.top_logprobs_num or body.token_ids_logprob:
        raise BadRequestError("top_logprobs_num and token_ids_logprob are not supported by this server")


def _prompts(body: _Body, limits: Limits) -> tuple[list[list[int]], bool]:
    given: list[list[int]]
    if (body.input_ids is None) == (body.text is None):
        raise BadRequestError("give either input_ids or text")
    if body.text is not None:
        if limits.tokenizer is None:
            raise BadRequestError("the model folder has no tokenizer: send input_ids")
        batched = isinstance(body.text, list)
        texts = body.text if isinstance(body.text, list) else [body.text]
        given = [limits.tokenizer.encode(text) for text in texts]
    else:
        given, batched = _split(body.input_ids or [])
    if not given:
        raise BadRequestError("the batch is empty")
    for prompt in given:
        if not prompt:
            raise BadRequestError("a prompt is empty")
        if min(prompt) < 0 or max(prompt) >= limits.n_vocab:
            odd = next(token for token in prompt if not 0 <= token < limits.n_vocab)
            raise BadRequestError(f"token id {odd} is outside the vocabulary of {limits.n_vocab}")
    return given, batched


def _split(ids: list[int | list[int]]) -> tuple[list[list[int]], bool]:
    prompts = [item for item in ids if isinstance(item, list)]
    if not prompts:
        return [cast(list[int], ids)], False
    if len(prompts) != len(ids):
        raise BadRequestError("input_ids must be a list of ids or a list of such lists, not a mixture")
    return prompts, True


def _rids(rid: str | None, n: int) -> list[str]:
    if rid is None:
        return [uuid.uuid4().hex for _ in range(n)]
    return [rid] if n == 1 else [f"{rid}_{i}" for i in range(n)]


def _sampling(given: _Sampling, limits: Limits) -> Sampling:
    for name, neutral in _NEUTRAL.items():
        if getattr(given, name) not in neutral:
            raise BadRequestError(f"sampling parameter {name} is not supported by this server")
    temperature = given.temperature if given.temperature >= _GREEDY_BELOW else 0.0
    if given.temperature < 0 or not 0 < given.top_p <= 1 or given.top_k == 0 or given.top_k < -1:
        raise BadRequestError("temperature must be >= 0, top_p in (0, 1], top_k -1 or >= 1")
    stop = [given.stop] if isinstance(given.stop, str) else given.stop or []
    if stop and limits.tokenizer is None:
        raise BadRequestError("the model folder has no tokenizer: stop strings cannot be found, use stop_token_ids")
    stop_ids = {token for token in given.stop_token_ids or [] if 0 <= token < limits.n_vocab} | limits.eos_ids
    n_new = 128 if given.max_new_tokens is None else given.max_new_tokens
    if n_new < 1 or not 0 <= given.min_new_tokens <= n_new:
        raise BadRequestError("max_new_tokens must be >= 1 and min_new_tokens between 0 and max_new_tokens")
    seed = next(limits.seeds) if given.sampling_seed is None else given.sampling_seed
    return Sampling(
        max_new_tokens=n_new,
        temperature=temperature,
        top_p=given.top_p,
        top_k=max(0, given.top_k) if given.top_k < limits.n_vocab else 0,
        stop=tuple(item.encode() for item in stop if item),
        stop_ids=frozenset() if given.ignore_eos else frozenset(stop_ids),
        min_new_tokens=given.min_new_tokens,
        seed=seed % (1 << 64),
    )


def _check_lengths(prompt: list[int], sampling: Sampling, limits: Limits) -> None:
    total = len(prompt) + sampling.max_new_tokens
    if total > limits.context_length:
        raise BadRequestError(
            f"prompt of {len(prompt)} tokens and max_new_tokens {sampling.max_new_tokens} together exceed the "
            f"context length of {limits.context_length}"
        )
    if total > limits.max_total_tokens:
        raise BadRequestError(f"the request needs {total} tokens; the server holds {limits.max_total_tokens}")
