"""What `/generate` answers: SGLang's reply objects, whole or as events of a stream."""

from __future__ import annotations

import codecs
import time
from typing import Any

from asearch.engines.embedded.request import Request
from asearch.models.tokenizer import Tokenizer


class Replies:
    """Builds the replies of one request; `incremental` events hold only what the one before did not."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, logprobs: bool, incremental: bool) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._logprobs, self._incremental = logprobs, incremental
        self._text = ""
        self._n_done = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self) -> dict[str, Any]:
        """The reply for what is ready now."""
        request = self._request
        finish, end, start = request.finish, request.n_ready, self._n_done if self._incremental else 0
        ids = request.output[start:end]
        text = self._decode(request.output[self._n_done : end], finish)
        self._text += text
        self._n_done = end
        spans = [(version, begin) for version, begin in request.versions if begin < end]
        ends = [*(begin for _, begin in spans), end][1:]
        meta: dict[str, Any] = {
            "id": request.rid,
            "finish_reason": finish,
            "prompt_tokens": len(request.prompt),
            "completion_tokens": end,
            "cached_tokens": request.n_cached,
            "num_retractions": request.n_retractions,
            "weight_versions": [
                {"version": version, "start": begin, "end": stop} for (version, begin), stop in zip(spans, ends, strict=True)
            ],
        }
        meta["weight_version"] = spans[-1][0] if spans else None
        if self._logprobs:
            values = request.logprobs[start:end]
            meta["output_token_logprobs"] = [(lp, token, None) for lp, token in zip(values, ids, strict=True)]
            meta["output_token_logprobs_length"] = end
        if finish is not None:
            meta["e2e_latency"] = time.time() - request.arrived_s
        shown = text if self._incremental else self._text
        if finish is not None and not self._incremental:
            shown = _trimmed(shown, finish)
        return {"text": shown, "output_ids": ids, "meta_info": meta}

    def _decode(self, ids: list[int], finish: dict[str, Any] | None) -> str:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return ""
        data = b"".join(tokenizer.token_bytes(token) for token in ids if token not in tokenizer.special_ids)
        return self._utf8.decode(data, finish is not None)


def _trimmed(text: str, finish: dict[str, Any]) -> str:
    matched = finish.get("matched")
    if isinstance(matched, str) and matched in text:
        return text[: text.rindex(matched)]
    return text
