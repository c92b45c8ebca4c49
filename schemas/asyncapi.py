"""The AsyncAPI 3.0 document of the topology: a channel per subject, an operation per actor that uses it."""

from typing import Any, get_args

from schemas.commands import AnyMessage
from schemas.events import AnyEvent
from schemas.jsonschema import components
from schemas.topology import TOPOLOGY, CoreSubject, Fact

Json = dict[str, Any]

MSGPACK = "application/msgpack"
INBOX = "reply_inbox"


def asyncapi() -> Json:
    """The document. Payload schemas describe the JSON form; on the wire the same structs are msgpack."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "asearch",
            "version": "1",
            "description": (
                "Events and messages between the actors of a run. Facts are appended to JetStream streams and read in order "
                "or worked off through durable consumers; core messages are not stored. Payloads are msgpack; the schemas "
                "show their JSON form, in which binary fields are base64."
            ),
        },
        "defaultContentType": MSGPACK,
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": components("#/components/schemas/{name}")},
    }


def _summary(struct: type) -> str:
    return (struct.__doc__ or "").strip().split("\n")[0]


def _messages() -> Json:
    return {
        struct.__name__: {
            "name": struct.__struct_config__.tag,
            "title": struct.__name__,
            "summary": _summary(struct),
            "contentType": MSGPACK,
            "payload": {"$ref": f"#/components/schemas/{struct.__name__}"},
        }
        for struct in (*get_args(AnyEvent), *get_args(AnyMessage))
    }


def _channel(prefix: str, keyed_by: tuple[str, ...], struct: type, description: str) -> Json:
    names = [f"key_{name}" for name in keyed_by]
    parameters: Json = {name: {"description": f"Key: {key}."} for name, key in zip(names, keyed_by, strict=True)}
    return {
        "address": ".".join(["asearch.{run}", prefix, *(f"{{{name}}}" for name in names)]),
        "title": struct.__name__,
        "description": description,
        "parameters": {"run": {"description": "Name of the run."}, **parameters},
        "messages": {struct.__name__: {"$ref": f"#/components/messages/{struct.__name__}"}},
    }


def _channels() -> Json:
    channels: Json = {}
    for fact in TOPOLOGY.facts:
        prefix = f"{fact.stream}.{fact.noun}.{fact.verb}"
        channels[prefix] = _channel(prefix, fact.keyed_by, fact.event, f"Stored in the stream `{fact.stream}`.")
    for row in TOPOLOGY.core:
        prefix = f"core.{row.noun}.{row.verb}"
        channels[prefix] = _channel(prefix, (row.keyed_by,), row.message, "Core subject, not stored.")
    replies = [row.reply.__name__ for row in TOPOLOGY.core if row.reply is not None]
    channels[INBOX] = {
        "address": None,
        "title": "Reply inbox",
        "description": "The inbox that a request names as its reply subject.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in sorted(set(replies))},
    }
    return channels


def _operation(action: str, channel: str, struct: type, summary: str) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{struct.__name__}"}],
    }


def _operations() -> Json:
    operations: Json = {}
    for actor in TOPOLOGY.actors:
        for fact in TOPOLOGY.facts:
            operations.update(_stream_operations(actor, fact))
        for row in TOPOLOGY.core:
            operations.update(_core_operations(actor, row))
    return operations


def _stream_operations(actor: str, fact: Fact) -> Json:
    channel, name = f"{fact.stream}.{fact.noun}.{fact.verb}", fact.event.__name__
    found: Json = {}
    if actor in fact.writers:
        found[f"{actor}.append.{name}"] = _operation("send", channel, fact.event, f"{actor} appends {name}.")
    for row in TOPOLOGY.consumers:
        if row.actor == actor and fact.event in row.events:
            summary = f"{actor} works {name} off, through the durable consumer `{row.name}`."
            found[f"{actor}.consume.{name}"] = _operation("receive", channel, fact.event, summary)
    for reader in TOPOLOGY.readers:
        if reader.actor == actor and reader.stream == fact.stream and (not reader.only or fact.event in reader.only):
            how = "reads the stream in order" if reader.in_order else "looks it up by key"
            found[f"{actor}.read.{name}"] = _operation("receive", channel, fact.event, f"{actor} {how}.")
    return found


def _core_operations(actor: str, row: CoreSubject) -> Json:
    channel, name = f"core.{row.noun}.{row.verb}", row.message.__name__
    found: Json = {}
    if actor in row.senders:
        found[f"{actor}.send.{name}"] = _operation("send", channel, row.message, f"{actor} sends {name}.")
    if actor in row.receivers:
        found[f"{actor}.receive.{name}"] = _operation("receive", channel, row.message, f"{actor} receives {name}.")
    if row.reply is not None:
        for operation in found.values():
            operation["reply"] = {
                "address": {"location": "$message.header#/reply", "description": "The reply subject of the request."},
                "channel": {"$ref": f"#/channels/{INBOX}"},
                "messages": [{"$ref": f"#/channels/{INBOX}/messages/{row.reply.__name__}"}],
            }
    return found
