"""A message of a stream as JSON, or as a line for people."""

import base64
from typing import Any, cast

import msgspec
import numpy as np

from actors.runtime.bus import Stored
from actors.runtime.event_history import ArchivedMessage
from asearch.traces.plain_text import ellipsis, plain_line
from asearch.traces.summary import utc
from schemas.events import Event
from schemas.records import Column

TEXT_BYTES = 4096
"""Bytes up to which what is UTF-8 is shown as text."""
SHOWN_BYTES = 256
VALUE_CHARS = 120
DTYPES = {"u1": "<u1", "u4": "<u4", "i4": "<i4", "f4": "<f4", "f8": "<f8"}


def event_json(stored: Stored, *, columns: bool = False) -> dict[str, Any]:
    """The line of `asearch events --json`."""
    line: dict[str, Any] = {
        "stream": stored.stream,
        "sequence": stored.sequence,
        "subject": stored.subject,
        "at": utc(stored.at_ns),
        "at_ns": stored.at_ns,
        "event": None if stored.event is None else _plain_value(stored.event, columns=columns),
    }
    if stored.event is None:
        line["malformed"] = stored.malformed or "not an event"
        line["n_bytes"] = len(stored.data)
        line["base64"] = base64.b64encode(stored.data if columns else stored.data[:SHOWN_BYTES]).decode()
    if isinstance(stored, ArchivedMessage):
        line["archived"] = True
    if stored.traceparent is not None:
        line["traceparent"] = stored.traceparent
    return line


def event_line(stored: Stored, *, columns: bool = False) -> str:
    """The line for people: time, stream and sequence, type, key, and what the event says."""
    where = f"{utc(stored.at_ns):<24}  {stored.stream:>8} {stored.sequence or '-':>6}"
    mark = " (archived)" if isinstance(stored, ArchivedMessage) else ""
    if stored.event is None:
        shown = plain_line(stored.data[:48].decode("latin-1"))
        return plain_line(f"{where}  MALFORMED {stored.subject}{mark}: {stored.malformed} ({len(stored.data)} bytes: {shown})")
    name = str(stored.event.__struct_config__.tag)
    said = _plain_value(stored.event, columns=columns)
    key = ".".join(stored.key)
    parts = [f"{field}={_short(each)}" for field, each in said.items() if field not in ("type", "id", "at_ns") and each != key]
    return plain_line(f"{where}  {name:<18} {key}{mark}  {' '.join(parts)}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return ellipsis(text, VALUE_CHARS) if " " not in text else repr(ellipsis(text, VALUE_CHARS))


def _plain_value(value: object, *, columns: bool) -> Any:
    """Structs as JSON values with their type; columns and bytes summed up, or decoded where they are wanted."""
    match value:
        case Column():
            return _column(value, columns=columns)
        case msgspec.Struct():
            named: dict[str, Any] = {"type": str(value.__struct_config__.tag)} if isinstance(value, Event) else {}
            for name in value.__struct_fields__:
                named[name] = _plain_value(getattr(value, name), columns=columns)
            return named
        case bytes():
            return _bytes(value, columns=columns)
        case dict():
            known = cast("dict[object, object]", value)
            return {str(key): _plain_value(each, columns=columns) for key, each in known.items()}
        case list() | tuple():
            return [_plain_value(each, columns=columns) for each in cast("list[object]", value)]
        case _:
            return value


def _column(column: Column, *, columns: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"dtype": column.dtype, "shape": list(column.shape)}
    dtype = DTYPES.get(column.dtype)
    if not columns or dtype is None:
        return {**said, "n_bytes": len(column.data)}
    n_whole = len(column.data) // np.dtype(dtype).itemsize
    return {**said, "values": np.frombuffer(column.data, dtype, n_whole).tolist()}


def _bytes(data: bytes, *, columns: bool) -> Any:
    if len(data) <= TEXT_BYTES:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    said: dict[str, Any] = {"n_bytes": len(data)}
    return {**said, "base64": base64.b64encode(data).decode()} if columns else said
