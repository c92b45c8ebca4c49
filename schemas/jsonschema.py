"""JSON Schema of everything that goes over the broker, with the descriptions of its fields."""

import inspect
from typing import Any, get_args

import msgspec

from schemas import commands, events, records
from schemas.commands import AnyMessage
from schemas.descriptions import field_descriptions
from schemas.events import AnyEvent
from schemas.records import ToolResult, Trajectory

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def components(ref_template: str) -> Json:
    """The schema of every struct by name, sorted; references are made with `ref_template`."""
    _, found = msgspec.json.schema_components([AnyEvent, AnyMessage, Trajectory, ToolResult], ref_template=ref_template)
    for name, schema in found.items():
        struct = _struct(name)
        schema["description"] = inspect.getdoc(struct)
        descriptions = field_descriptions(struct)
        for field, described in schema.get("properties", {}).items():
            if field in descriptions:
                described["description"] = descriptions[field]
    return dict(sorted(found.items()))


def event_schema() -> Json:
    """One document: a value is an event or a message; `$defs` holds each by name, and the stored records."""
    names = [struct.__name__ for struct in (*get_args(AnyEvent), *get_args(AnyMessage))]
    return {
        "$schema": DIALECT,
        "title": "Events and messages of asearch",
        "description": "The JSON form. On the wire the same structs are msgpack; binary fields are base64 here and bytes there.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in names],
        "$defs": components("#/$defs/{name}"),
    }


def _struct(name: str) -> type[msgspec.Struct]:
    for module in (events, commands, records):
        found = getattr(module, name, None)
        if isinstance(found, type) and issubclass(found, msgspec.Struct):
            return found
    raise LookupError(f"no struct is called {name}")
