"""The requests that are waiting and running, and one step of the model for them. Used by one thread only."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from asearch.engines.embedded.request import Request, stopped_by
from asearch.engines.embedded.rows import Rows
from asearch.engines.embedded.sampler import sample
from asearch.models.decoder import Decoder
from asearch.models.kv_cache import KvCache

Finish = dict[str, Any]


class Batch:
    """Continuous batching: prompts are fed in parts between decoding steps; requests come and go at any step."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        version: str,
        *,
        max_running: int,
        max_total_tokens: int,
        prefill_tokens: int,
        stream_interval: int,
        bytes_of: Callable[[int], bytes],
        stream_s: float = 0.0,
    ) -> None:
        """`stream_s` > 0: a stream is given what there is at the latest so many seconds after it was given something."""
        self.decoder, self.version = decoder, version
        self.n_generated = self.n_prefilled = self.n_reused = 0
        self.advanced: list[tuple[Request, int, Finish | None]] = []
        """(request, output tokens ready, how it finished), in order; emptied by the caller."""
        self._cache, self._rows = cache, Rows(cache)
        self._max_running, self._max_total_tokens = max_running, max_total_tokens
        self._prefill_tokens, self._stream_interval = prefill_tokens, stream_interval
        self._bytes_of = bytes_of
        self._stream_s = stream_s or math.inf
        self._waiting: deque[Request] = deque()
        self._feeding: list[Request] = []
        self._decoding: list[Request] = []
        self._n_reserved = 0
        self._spoiled = False
        """Whether the cache may hold values that are not finite, which masking does not hide."""

    @property
    def n_waiting(self) -> int:
        """Requests that hold no row."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that hold a row."""
        return len(self._feeding) + len(self._decoding)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._waiting.append(request)

    def step(self) -> bool:
        """Admits what fits, feeds prompts, decodes one token of every running request; False if there was nothing."""
        self._admit()
        worked = bool(self._feeding or self._decoding)
        if self._feeding:
            self._feed()
        if self._decoding:
            self._decode()
        return worked

    def abort(self, chosen: Callable[[Request], bool], finish: Finish) -> int:
        """Ends the chosen requests, waiting or running, with what they have; returns how many."""
        for request in [r for r in self._waiting if chosen(r)]:
            self._waiting.remove(request)
            self._report(request, finish)
        running = [r for r in (*self._feeding, *self._decoding) if chosen(r)]
        n_before = len(self.advanced)
        for request in running:
            self._leave(request)
            self._report(request, finish)
        return len(self.advanced) - n_before

    def retract(self) -> int:
        """Sends all running requests back to the head of the queue, with their tokens; returns how many."""
        running = [*self._decoding, *self._feeding]
        for request in running:
            self._leave(request)
            request.n_retractions += 1
        self._waiting.extendleft(reversed(running))
        return len(running)

    def flush(self) -> bool:
        """Forgets kept prefixes; refused (False) while requests run."""
        if self.n_running:
            return False
        self._rows.flush()
        return True

    def replace(self, decoder: Decoder, version: str) -> None:
        """Goes on under other weights: running requests keep their tokens, all keys and values are computed anew."""
        self.retract()
        self._rows.flush()
        if self._spoiled:
            self._cache.clear()
            self._spoiled = False
        self.decoder, self.version = decoder, version

    def drop_all(self, finish: Finish) -> None:
        """Ends every request after a failed step and forgets all rows, whatever state they are in."""
        for request in (*self._waiting, *self._feeding, *self._decoding):
            self._report(request, finish)
        self._waiting.clear()
        self._feeding, self._decoding, self._n_reserved = [], [], 0
        self._rows = Rows(self._cache)
        self._spoiled = True

    def _admit(self) -> None:
        later: list[Request] = []
        while self._waiting and self.n_running < self._max_running:
            request = self._waiting[0]
            if self._n_reserved + request.n_reserved > self._max_total_tokens:
                break
            self._waiting.popleft()
            tokens = request.prompt + request.output
            taken = self._rows.acquire(tokens)
            if taken is None:
                later.append(request)
                continue
            request.row, request.n_fed = taken
            request.sent_s = time.monotonic()
            request.n_target = len(tokens)
            if not request.n_retractions:
                request.n_cached = request.n_fed
            self.n_reused += request.n_fed
            self._n_reserved += request.n_reserved
            self._feeding.append(request)
        self._waiting.extendleft(reversed(later))

    def _feed(self) -> None:
        left = self._prefill_tokens
        parts: list[tuple[int, int, list[int]]] = []
        fed: list[Request] = []
        for request in self._feeding:
            if left <= 0:
                break
            end = min(request.n_target, request.n_fed + left)
            n_prompt = len(request.prompt)
            part = request.prompt[request.n_fed : end]
            if end > n_prompt:
                part = part + request.output[max(0, request.n_fed - n_prompt) : end - n_prompt]
            parts.append((request.row, request.n_fed, part))
            request.n_fed = end
            left -= len(part)
            fed.append(request)
        self.n_prefilled += self._prefill_tokens - left
        logits_BV = self.decoder.prefill(self._cache, parts)
        done = [i for i, request in enumerate(fed) if request.n_fed == request.n_target]
        for request in fed:
            self._rows.computed(request.row, request.n_fed)
        if not done:
            return
        ready = [fed[i] for i in done]
        self._feeding = [request for request in self._feeding if request.n_fed < request.n_target]
        self._decoding.extend(ready)
        self._extend(ready, logits_BV if len(done) == len(fed) else logits_BV[done])

    def _decode(self) -> None:
        requests = self._decoding
        moves = self._rows.compact({r.row: r.n_fed for r in (*requests, *self._feeding)})
        if moves:
            for request in (*requests, *self._feeding):
                request.row = moves.get(request.row, request.row)
        requests.sort(key=lambda request: request.row)
        positions = [request.n_fed for request in requests]
        last = [request.output[-1] for request in requests]
        logits_BV = self.decoder.decode(self._cache, [request.row for request in requests], last, positions)
        for request in requests:
            request.n_fed += 1
        self._extend(requests, logits_BV)

    def _extend(self, requests: list[Request], logits_BV: Tensor) -> None:
        ids, logprobs = sample(logits_BV, requests)
        self.n_generated += len(ids)
        due_s = time.monotonic() - self._stream_s
        ended: set[Request] = set()
        for request, token, logprob in zip(requests, ids, logprobs, strict=True):
            if not math.isfinite(logprob):
                ended.add(request)
                self._spoil(request)
                continue
            if not request.versions or request.versions[-1][0] != self.version:
                request.versions.append((self.version, len(request.output)))
            request.output.append(token)
            request.logprobs.append(logprob)
            finish = self._finish_of(request, token)
            if finish is not None:
                ended.add(request)
                self._release(request)
                self._report(request, finish)
            elif request.stream and (len(request.output) - request.n_sent >= self._stream_interval or request.sent_s < due_s):
                self._report(request, None)
        if ended:
            self._decoding = [request for request in self._decoding if request not in ended]

    def _finish_of(self, request: Request, token: int) -> Finish | None:
        sampling, n_output = request.sampling, len(request.output)
        if token in sampling.stop_ids and n_output > sampling.min_new_tokens:
            return {"type": "stop", "matched": token}
        if sampling.stop:
            matched = stopped_by(request, token, self._bytes_of)
            if matched is not None and n_output > sampling.min_new_tokens:
                return {"type": "stop", "matched": matched}
        if n_output >= sampling.max_new_tokens:
            return {"type": "length", "length": n_output}
        return None

    def _leave(self, request: Request) -> None:
        """Takes a running request out of the batch; its row is kept for reuse."""
        self._feeding = [r for r in self._feeding if r is not request]
        self._decoding = [r for r in self._decoding if r is not request]
        self._release(request)

    def _release(self, request: Request) -> None:
        n_known, n_prompt = min(request.n_target, request.n_fed), len(request.prompt)
        new = request.output[n_known - n_prompt : request.n_fed - n_prompt] if request.n_fed > n_known else []
        self._rows.release(request.row, new, n_known)
        self._n_reserved -= request.n_reserved
        request.row = -1

    def _spoil(self, request: Request) -> None:
        self._rows.release(request.row, [], 0)
        self._spoiled = True
        self._n_reserved -= request.n_reserved
        request.row = -1
        message = "the model computed a value that is not finite"
        self._report(request, {"type": "abort", "message": message, "status_code": 500, "err_type": "NonFinite"})

    def _report(self, request: Request, finish: Finish | None) -> None:
        request.n_sent, request.sent_s = len(request.output), time.monotonic()
        self.advanced.append((request, request.n_sent, finish))
