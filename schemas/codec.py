"""Bytes to events and back. Decoding never raises anything but `MalformedError`."""

from typing import cast

import msgspec

from schemas.commands import AnyMessage, Message
from schemas.events import AnyEvent, Event
from schemas.records import ToolResult, Trajectory


class MalformedError(ValueError):
    """Bytes that are not an event or message this code knows."""


_encoder = msgspec.msgpack.Encoder()
_events = msgspec.msgpack.Decoder(AnyEvent)
_messages = msgspec.msgpack.Decoder(AnyMessage)
_results = msgspec.msgpack.Decoder(ToolResult)
_texts = msgspec.msgpack.Decoder(list[str])
_trajectories = msgspec.msgpack.Decoder(Trajectory)


def encode(value: Event | Message | Trajectory) -> bytes:
    """The msgpack form of an event, message or trajectory."""
    return _encoder.encode(value)


def decode_event(data: bytes) -> Event:
    """Read an event. Raises MalformedError for anything that is not one."""
    try:
        return cast("Event", _events.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not an event: {error}") from error


def decode_message(data: bytes) -> Message:
    """Read a core message. Raises MalformedError for anything that is not one."""
    try:
        return cast("Message", _messages.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a message: {error}") from error


def decode_trajectory(data: bytes) -> Trajectory:
    """Read a stored trajectory. Raises MalformedError for anything that is not one."""
    try:
        return _trajectories.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a trajectory: {error}") from error


def encode_generated(texts: list[str]) -> bytes:
    """The stored form of the texts of an episode's generations."""
    return _encoder.encode(texts)


def decode_generated(data: bytes) -> list[str]:
    """Read what `encode_generated` wrote. Raises MalformedError."""
    try:
        return _texts.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a list of texts: {error}") from error


def encode_result(result: ToolResult) -> bytes:
    """The stored form of a tool result."""
    return _encoder.encode(result)


def decode_result(data: bytes) -> ToolResult:
    """Read what `encode_result` wrote. Raises MalformedError."""
    try:
        return _results.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a tool result: {error}") from error
