"""The generated documents: complete, sound, and the same as those in the repository."""

import json
import re
from typing import Any

import msgspec
import pytest
from schema_samples import EVENTS, MESSAGES, STORED

from schemas.descriptions import field_descriptions
from schemas.documents import FOLDER, documents
from schemas.permissions import OPERATOR, permissions, rights_of
from schemas.topology import TOPOLOGY

DOCUMENTS = documents()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_repository_holds_what_is_generated(name: str) -> None:
    path = FOLDER / name
    assert path.is_file() and path.read_text(encoding="utf-8") == DOCUMENTS[name], "run python -m schemas.documents"


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", ["events.schema.json", "asyncapi.json"])
def test_every_reference_leads_somewhere(name: str) -> None:
    document = json.loads(DOCUMENTS[name])
    found = references(document)
    assert found
    for reference in found:
        at = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


def test_the_schema_names_every_event_and_message_by_its_tag() -> None:
    document = json.loads(DOCUMENTS["events.schema.json"])
    assert len(document["oneOf"]) == len(EVENTS) + len(MESSAGES)
    for struct in (*EVENTS, *MESSAGES):
        schema = document["$defs"][struct.__name__]
        assert schema["properties"]["type"]["enum"] == [struct.__struct_config__.tag]
        assert "type" in schema["required"]
        assert set(schema["properties"]) == {"type", *struct.__struct_encode_fields__}


@pytest.mark.parametrize("struct", [*EVENTS, *MESSAGES, *STORED], ids=lambda struct: struct.__name__)
def test_every_field_is_described(struct: type[msgspec.Struct]) -> None:
    told = field_descriptions(struct)
    prose = " ".join(base.__doc__ or "" for base in struct.__mro__)
    assert struct.__doc__
    assert not [name for name in struct.__struct_fields__ if name not in told and f"`{name}`" not in prose]


def test_every_stored_record_is_described() -> None:
    for name, schema in json.loads(DOCUMENTS["events.schema.json"])["$defs"].items():
        prose = schema["description"]
        silent = [
            field for field, told in schema["properties"].items() if "description" not in told and f"`{field}`" not in prose
        ]
        assert [field for field in silent if field != "type"] == [], name


def test_asyncapi_has_a_channel_for_every_subject_and_operations_for_every_actor() -> None:
    document = json.loads(DOCUMENTS["asyncapi.json"])
    assert document["asyncapi"] == "3.0.0"
    addresses = [channel["address"] for channel in document["channels"].values()]
    assert len(set(addresses)) == len(addresses) == len(TOPOLOGY.facts) + len(TOPOLOGY.core) + 1
    for channel in document["channels"].values():
        parameters = set(re.findall(r"{(\w+)}", channel["address"] or ""))
        assert parameters == set(channel.get("parameters", {}))
    assert {name.split(".")[0] for name in document["operations"]} == set(TOPOLOGY.actors)
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"].removeprefix("#/channels/")
        assert operation["messages"][0]["$ref"].startswith(f"#/channels/{channel}/messages/")
    assert {name for name, operation in document["operations"].items() if "reply" in operation} == {
        "tool.send.ToolReply",
        "driver.receive.ToolReply",
    }


def test_the_tables_name_every_row() -> None:
    text = DOCUMENTS["topology.md"]
    for word in (
        *(stream.name.upper() for stream in TOPOLOGY.streams),
        *(fact.event.__name__ for fact in TOPOLOGY.facts),
        *(row.message.__name__ for row in TOPOLOGY.core),
    ):
        assert f"`{word}`" in text


def matches(pattern: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, `>` one or more at the end."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for i, part in enumerate(wanted):
        if part == ">":
            return len(tokens) > i
        if i >= len(tokens) or part not in ("*", tokens[i]):
            return False
    return len(wanted) == len(tokens)


def may_publish(actor: str, subject: str) -> bool:
    rights = rights_of(actor, "r")
    allowed = any(matches(pattern, subject) for pattern in rights.publish)
    return allowed and not any(matches(pattern, subject) for pattern in rights.deny_publish)


def test_rights_cover_actors_and_operator() -> None:
    assert set(permissions()) == {*TOPOLOGY.actors, OPERATOR}
    with pytest.raises(ValueError, match="no kind of actor"):
        rights_of("janitor", "r")


@pytest.mark.parametrize("actor", TOPOLOGY.actors)
def test_actors_write_their_own_facts_only(actor: str) -> None:
    for fact in TOPOLOGY.facts:
        subject = f"asearch.r.{fact.stream}.{fact.noun}.{fact.verb}.k"
        assert may_publish(actor, subject) == (actor in fact.writers)
        assert not may_publish(actor, subject.replace(".r.", ".other."))


@pytest.mark.parametrize("actor", TOPOLOGY.actors)
def test_only_the_recorder_purges_and_nobody_deletes_or_changes_streams(actor: str) -> None:
    for stream in TOPOLOGY.streams:
        name = f"asearch-r-{stream.name}"
        assert may_publish(actor, f"$JS.API.STREAM.PURGE.{name}") == (actor == "recorder" and actor in stream.purged_by)
        for verb in ("STREAM.DELETE", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.MSG.DELETE", "STREAM.MSG.GET"):
            assert not may_publish(actor, f"$JS.API.{verb}.{name}")


@pytest.mark.parametrize("actor", TOPOLOGY.actors)
def test_only_its_workers_touch_a_queue(actor: str) -> None:
    for row in TOPOLOGY.consumers:
        tail = f"asearch-r-{row.stream}.{row.name}"
        for subject in (f"$JS.API.CONSUMER.MSG.NEXT.{tail}", f"$JS.ACK.{tail}.1.2.3.4.5"):
            assert may_publish(actor, subject) == (actor == row.actor)
        for verb in ("CREATE", "DELETE"):
            denied = not may_publish(actor, f"$JS.API.CONSUMER.{verb}.{tail}")
            # The only reader of PLAN besides the viewer is the scheduler, which may not touch the driver's queue either.
            assert denied


@pytest.mark.parametrize("actor", ["driver", "engine", "tool", "trainer", "recorder"])
def test_answer_keys_cannot_be_read(actor: str) -> None:
    for subject in (
        "$JS.API.DIRECT.GET.asearch-r-plan",
        "$JS.API.DIRECT.GET.asearch-r-plan.asearch.r.plan.key.stored.t",
        "$JS.API.CONSUMER.CREATE.asearch-r-plan.mine",
        "$JS.API.CONSUMER.CREATE.asearch-r-plan.mine.asearch.r.plan.key.stored.t",
    ):
        assert not may_publish(actor, subject)
    allowed = permissions("r")[actor]["subscribe"]
    assert isinstance(allowed, dict)
    for pattern in allowed["allow"]:
        assert not any(matches(pattern, subject) for subject in ("asearch.r.plan.key.stored.t", "_INBOX_grader.x"))
    assert may_publish("grader", "$JS.API.DIRECT.GET.asearch-r-plan.asearch.r.plan.key.stored.t")
