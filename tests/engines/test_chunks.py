"""Whose the tokens of a stream are, where the server says so with the last event only, as SGLang does."""

from typing import Any

import msgspec
import pytest

from asearch.engines.chunks import Chunks, Event, GeneratedChunk
from asearch.errors import EngineError


def event(n_all: int, n_new: int, *, now: str = "v1", spans: list[tuple[str, int, int]] | None = None, **meta: Any) -> Event:
    """What SGLang 0.5.23 sends under --incremental-streaming-output; spans only with the last event."""
    ids = list(range(n_all - n_new, n_all))
    content: dict[str, Any] = {
        "completion_tokens": n_all,
        "weight_version": now,
        "output_token_logprobs": [[-0.5, token, None] for token in ids],
        "finish_reason": None,
    }
    if spans is not None:
        content["weight_versions"] = [{"version": name, "start": start, "end": end} for name, start, end in spans]
        content["finish_reason"] = {"type": "length", "length": n_all}
    return msgspec.convert({"text": "", "output_ids": ids, "meta_info": content | meta}, Event)


def spans_of(chunk: GeneratedChunk | None) -> list[tuple[str, int, int]]:
    assert chunk is not None
    return [(span.version, span.start, span.end) for span in chunk.versions]


def test_tokens_are_passed_on_as_long_as_no_weights_were_loaded() -> None:
    chunks = Chunks(lambda: True)
    assert spans_of(chunks.take(event(1, 1))) == [("v1", 0, 1)]
    assert spans_of(chunks.take(event(17, 16))) == [("v1", 1, 17)]
    last = chunks.take(event(20, 3, spans=[("v1", 0, 20)]))
    assert spans_of(last) == [("v1", 17, 20)]
    assert last is not None
    assert (last.offset, last.ids, last.finish) == (17, [17, 18, 19], "length")


def test_after_a_load_they_are_held_back_until_the_server_says_whose_they_are() -> None:
    settled = True
    chunks = Chunks(lambda: settled)
    chunks.take(event(4, 4))
    settled = False
    assert chunks.take(event(8, 4)) is None
    assert chunks.take(event(12, 4, now="v2")) is None
    assert chunks.n_held == 8
    last = chunks.take(event(13, 1, now="v2", spans=[("v1", 0, 6), ("v2", 6, 13)]))
    assert spans_of(last) == [("v1", 4, 6), ("v2", 6, 13)]
    assert last is not None
    assert (last.offset, last.ids, len(last.logprobs)) == (4, list(range(4, 13)), 9)
    assert chunks.n_held == 0


def test_a_request_that_is_ended_while_it_waits_has_its_last_token_said_twice() -> None:
    chunks = Chunks(lambda: True)
    chunks.take(event(17, 17))
    last = chunks.take(event(17, 1, spans=[("v1", 0, 17)], finish_reason={"type": "abort", "message": "Abort in waiting queue"}))
    assert last is not None
    assert (last.offset, last.ids, last.logprobs, last.versions, last.finish) == (17, [], [], [], "abort")


def test_another_name_holds_them_back_too() -> None:
    chunks = Chunks(lambda: True)
    chunks.take(event(4, 4))
    assert chunks.take(event(8, 4, now="v2")) is None


def test_a_request_that_was_sent_during_a_load_is_held_from_its_first_token() -> None:
    chunks = Chunks(lambda: False)
    assert chunks.take(event(3, 3)) is None
    assert spans_of(chunks.take(event(4, 1, spans=[("v0", 0, 1), ("v1", 1, 4)]))) == [("v0", 0, 1), ("v1", 1, 4)]


def test_an_end_without_tokens_needs_no_versions() -> None:
    chunks = Chunks(lambda: False)
    last = chunks.take(event(0, 0, finish_reason={"type": "abort", "message": "Aborted"}))
    assert last is not None
    assert (last.ids, last.versions, last.finish) == ([], [], "abort")


REFUSED = [
    (lambda: event(4, 4, spans=[("v1", 0, 3)]), "do not cover"),
    (lambda: event(4, 4, spans=[("v1", 1, 4)]), "do not cover"),
    (lambda: event(4, 4, finish_reason={"type": "stop"}), "do not cover"),
    (
        lambda: event(4, 4, spans=[("v1", 0, 4)], output_token_logprobs=[[None, n, None] for n in range(4)]),
        "log-probability None",
    ),
    (lambda: event(4, 4, spans=[("v1", 0, 4)], output_token_logprobs=[[float("-inf"), n, None] for n in range(4)]), "-inf"),
    (lambda: event(4, 4, spans=[("v1", 0, 4)], output_token_logprobs=[[-1.0, 9, None] for n in range(4)]), "of token 9"),
    (lambda: event(4, 4, spans=[("v1", 0, 4)], output_token_logprobs=None), "0 logprobs"),
    (lambda: event(4, 4, finish_reason={"type": "abort", "message": "too long", "status_code": 400}), "too long"),
]


@pytest.mark.parametrize(("made", "said"), REFUSED)
def test_what_must_not_be_used_is_refused(made: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        Chunks(lambda: True).take(made())


def test_a_server_may_not_take_back_what_it_has_said() -> None:
    chunks = Chunks(lambda: True)
    assert chunks.take(event(4, 4)) is not None
    with pytest.raises(EngineError, match="takes back the weight versions of the tokens up to 4"):
        chunks.take(event(8, 4, now="v2", spans=[("v1", 0, 2), ("v2", 2, 8)]))


def test_spans_that_come_with_every_event_are_taken_as_they_are() -> None:
    chunks = Chunks(lambda: False)
    first = event(4, 4, spans=[("v1", 0, 4)], finish_reason=None)
    assert spans_of(chunks.take(first)) == [("v1", 0, 4)]
    second = event(8, 4, spans=[("v1", 0, 6), ("v2", 6, 8)], finish_reason=None)
    assert spans_of(chunks.take(second)) == [("v1", 4, 6), ("v2", 6, 8)]
