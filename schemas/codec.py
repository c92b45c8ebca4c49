"""Bytes to events and back. Decoding never raises anything but `MalformedError`, which names what is wrong.

Unknown fields are skipped, unknown types refused. Columns whose bytes do not fit their shape are refused here, as are the
numbers that `records.Count` and `records.Finite` exclude.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, cast

import msgspec

from schemas.commands import AnyMessage, Generate, GenerationChunk, Message
from schemas.events import AnyEvent, Event, TokensGenerated
from schemas.records import Column, StepTokens, ToolResult, Trajectory

ITEM_BYTES = {
    f"{kind}{size}": size for kind, sizes in (("u", (1, 2, 4, 8)), ("i", (1, 2, 4, 8)), ("f", (2, 4, 8))) for size in sizes
}
"""Bytes per value of the types that are checked; a column of a type that is not known here is passed on as it is."""
_size_of = ITEM_BYTES.get


class MalformedError(ValueError):
    """Bytes that are not an event or message this code knows.

    `name` is `truncated`, `trailing_bytes`, `too_deep`, `no_text`, `unknown_type`, `wrong_field`, `wrong_column` or
    `no_msgpack`; the text holds it.
    """

    def __init__(self, what: str, name: str, details: object) -> None:
        super().__init__(f"not {what} ({name}): {details}")
        self.name = name


_encoder = msgspec.msgpack.Encoder()
_events = msgspec.msgpack.Decoder(AnyEvent)
_decode_any_event = cast("Callable[[bytes], Event]", _events.decode)
_messages = msgspec.msgpack.Decoder(AnyMessage)
_results = msgspec.msgpack.Decoder(ToolResult)
_texts = msgspec.msgpack.Decoder(list[str])
_trajectories = msgspec.msgpack.Decoder(Trajectory)
_step_tokens = msgspec.msgpack.Decoder(StepTokens)


def encode(value: Event | Message | Trajectory | StepTokens) -> bytes:
    """The msgpack form of an event, message, trajectory or of the tokens of an update."""
    return _encoder.encode(value)


def decode_event(data: bytes) -> Event:
    """Read an event. Raises MalformedError for anything that is not one."""
    try:
        event = _decode_any_event(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("an event", _name_of(error), error) from error
    if type(event) is TokensGenerated:
        _check_columns(event.columns, "an event")
    return event


def decode_message(data: bytes) -> Message:
    """Read a core message. Raises MalformedError for anything that is not one."""
    message = cast("Message", _decode(_messages, data, "a message"))
    if type(message) is GenerationChunk:
        _check_columns(message.columns, "a message")
    elif type(message) is Generate:
        _check_columns({"prompt": message.prompt}, "a message")
    return message


def decode_trajectory(data: bytes) -> Trajectory:
    """Read a stored trajectory. Raises MalformedError for anything that is not one."""
    trajectory = _decode(_trajectories, data, "a trajectory")
    for segment in trajectory.segments:
        _check_columns(segment.columns, "a trajectory")
    return trajectory


def decode_step_tokens(data: bytes) -> StepTokens:
    """Read the stored tokens of an update. Raises MalformedError for anything that is not that."""
    tokens = cast("StepTokens", _decode(_step_tokens, data, "a record of trained tokens"))
    for episode in tokens.episodes:
        for segment in episode.segments:
            _check_columns(segment.columns, "a record of trained tokens")
    return tokens


def encode_generated(texts: list[str]) -> bytes:
    """The stored form of the texts of an episode's generations."""
    return _encoder.encode(texts)


def decode_generated(data: bytes) -> list[str]:
    """Read what `encode_generated` wrote. Raises MalformedError."""
    return _decode(_texts, data, "a list of texts")


def encode_result(result: ToolResult) -> bytes:
    """The stored form of a tool result."""
    return _encoder.encode(result)


def decode_result(data: bytes) -> ToolResult:
    """Read what `encode_result` wrote. Raises MalformedError."""
    return _decode(_results, data, "a tool result")


def _decode(decoder: "msgspec.msgpack.Decoder[Any]", data: bytes, what: str) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(what, _name_of(error), error) from error


def _check_columns(columns: Mapping[str, Column], what: str) -> None:
    for column in columns.values():
        shape = column.shape
        size = _size_of(column.dtype)
        # One dimension is what nearly all have; `prod` costs more than the rest.
        if size is not None and (size * shape[0] if len(shape) == 1 else prod(shape, start=size)) != len(column.data):
            name = next(name for name, each in columns.items() if each is column)
            details = f"column {name!r} of {column.dtype} and shape {column.shape} has {len(column.data)} bytes"
            raise MalformedError(what, "wrong_column", details)


def _name_of(error: Exception) -> str:
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        return "unknown_type" if text.endswith("`$.type`") or text.endswith("field `type`") else "wrong_field"
    if isinstance(error, RecursionError):
        return "too_deep"
    if isinstance(error, UnicodeDecodeError):
        return "no_text"
    if "truncated" in text:
        return "truncated"
    return "trailing_bytes" if "trailing" in text else "no_msgpack"
