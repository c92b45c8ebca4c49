"""Every event type, generated from its fields: through the bus, through the archive, and out of older bytes."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect as types

from schemas.codec import MalformedError, decode_event, encode
from schemas.events import AnyEvent, Event
from schemas.records import Column
from tests.properties.counts import examples

EVENTS: tuple[type[Event], ...] = get_args(AnyEvent)
LEAVES: dict[type[types.Type], st.SearchStrategy[Any]] = {
    types.NoneType: st.none(),
    types.StrType: st.text(max_size=8),
    types.BytesType: st.binary(max_size=8),
    types.IntType: st.integers(-(2**63), 2**64 - 1),
    types.FloatType: st.floats(allow_nan=False, allow_infinity=False),
    types.BoolType: st.booleans(),
}


def values(kind: types.Type) -> st.SearchStrategy[Any]:
    """What a field of this type may hold."""
    match kind:
        case types.StructType() if kind.cls is Column:
            return st.binary(max_size=8).map(lambda data: Column(dtype="u1", shape=(len(data),), data=data))
        case types.StructType():
            return instances(kind.cls)
        case types.IntType(ge=0):
            return st.integers(0, 2**64 - 1)
        case types.UnionType():
            return st.one_of([values(each) for each in kind.types])
        case types.ListType():
            return st.lists(values(kind.item_type), max_size=2)
        case types.VarTupleType():
            return st.lists(values(kind.item_type), max_size=2).map(tuple)
        case types.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=2)
        case _:
            return LEAVES[type(kind)]


def instances(struct: type[Any]) -> st.SearchStrategy[Any]:
    """Instances with and without the fields that have defaults."""
    fields = types.type_info(struct).fields  # type: ignore[attr-defined]
    needed = {field.name: values(field.type) for field in fields if field.required}
    free = {field.name: values(field.type) for field in fields if not field.required}
    return st.fixed_dictionaries(needed, optional=free).map(lambda given: struct(**given))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@examples(12)
@given(data=st.data())
def test_an_event_survives_the_wire_and_the_archive(kind: type[Event], data: st.DataObject) -> None:
    event = data.draw(instances(kind))
    wire = encode(event)
    back = decode_event(wire)
    assert back == event
    assert type(back) is kind
    assert encode(back) == wire, "a retry must send the same bytes"
    assert msgspec.json.decode(msgspec.json.encode(event), type=AnyEvent) == event
    for n in (0, 1, len(wire) // 2, len(wire) - 1):
        with pytest.raises(MalformedError):
            decode_event(wire[:n])


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@examples(6)
@given(data=st.data())
def test_older_bytes_without_the_later_fields_decode(kind: type[Event], data: st.DataObject) -> None:
    event = data.draw(instances(kind))
    optional = [field.name for field in types.type_info(kind).fields if not field.required]  # type: ignore[attr-defined]
    gone = data.draw(st.sets(st.sampled_from(optional)) if optional else st.just(set[str]()))
    fields = {name: value for name, value in msgspec.msgpack.decode(encode(event)).items() if name not in gone}
    older = decode_event(msgspec.msgpack.encode(fields))
    for field in types.type_info(kind).fields:  # type: ignore[attr-defined]
        if field.name not in gone:
            assert getattr(older, field.name) == getattr(event, field.name)
