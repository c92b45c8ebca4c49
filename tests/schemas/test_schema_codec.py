"""The codec: what goes in comes out, and anything else is MalformedError and nothing but."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect as types
from schema_samples import EVENTS, MESSAGES, STORED, sample

from schemas import codec
from schemas.codec import MalformedError
from schemas.events import RunStarted

Decode = Callable[[bytes], object]

DECODERS: dict[str, Decode] = {
    "event": codec.decode_event,
    "message": codec.decode_message,
    "trajectory": codec.decode_trajectory,
    "generated": codec.decode_generated,
    "result": codec.decode_result,
}
some = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
texts = st.text(max_size=12)
numbers = st.integers(min_value=-(2**63), max_value=2**64 - 1)


def values(kind: types.Type) -> st.SearchStrategy[Any]:
    """Every value a field of this type may have; often small."""
    match kind:
        case types.StructType():
            return instances(kind.cls)
        case types.UnionType():
            return st.one_of([values(each) for each in kind.types])
        case types.ListType():
            return st.lists(values(kind.item_type), max_size=3)
        case types.VarTupleType():
            return st.lists(values(kind.item_type), max_size=3).map(tuple)
        case types.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=3)
        case types.NoneType():
            return st.none()
        case types.StrType():
            return texts
        case types.BytesType():
            return st.binary(max_size=12)
        case types.IntType():
            return numbers
        case types.FloatType():
            return st.floats(allow_nan=False)
        case types.BoolType():
            return st.booleans()
        case _:
            raise TypeError(f"no strategy for {kind}; add one here")


def instances(struct: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    """Instances with and without the fields that have defaults."""
    fields = types.type_info(struct).fields
    needed = {field.name: values(field.type) for field in fields if field.required}
    free = {field.name: values(field.type) for field in fields if not field.required}
    return st.fixed_dictionaries(needed, optional=free).map(lambda given: struct(**given))


def decoder_of(struct: type[msgspec.Struct]) -> Decode:
    if struct in EVENTS:
        return codec.decode_event
    return codec.decode_message if struct in MESSAGES else DECODERS[{"ToolResult": "result"}.get(struct.__name__, "trajectory")]


def everything() -> st.SearchStrategy[msgspec.Struct]:
    return st.sampled_from((*EVENTS, *MESSAGES, *STORED)).flatmap(instances)


def tree_values() -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.none(), st.booleans(), numbers, st.floats(), texts, st.binary(max_size=8))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
    )


def refuses(decode: Decode, data: bytes) -> None:
    """Decoding succeeds or raises MalformedError; anything else fails the test."""
    try:
        decode(data)
    except MalformedError as error:
        assert str(error).startswith("not a")


@settings(some, max_examples=300)
@given(everything())
def test_what_is_encoded_decodes_to_itself(value: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(value)
    back = decoder_of(type(value))(data)
    assert back == value and type(back) is type(value)
    assert msgspec.msgpack.encode(back) == data


def test_large_and_odd_numbers_survive() -> None:
    value = msgspec.structs.replace(sample(RunStarted), seed=2**63)
    assert codec.decode_event(msgspec.msgpack.encode(value)) == value
    heartbeat = next(each for each in MESSAGES if each.__name__ == "Heartbeat")
    odd = msgspec.structs.replace(sample(heartbeat), gauges={"nan": math.nan, "inf": math.inf})
    gauges = codec.decode_message(msgspec.msgpack.encode(odd)).gauges  # type: ignore[attr-defined]
    assert math.isnan(gauges["nan"]) and gauges["inf"] == math.inf


@some
@given(
    everything(), st.dictionaries(st.text(min_size=1, max_size=8).map("later_".__add__), tree_values(), min_size=1, max_size=3)
)
def test_unknown_fields_are_skipped(value: msgspec.Struct, later: dict[str, Any]) -> None:
    fields = {**msgspec.msgpack.decode(msgspec.msgpack.encode(value)), **later}
    assert decoder_of(type(value))(msgspec.msgpack.encode(fields)) == value


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@some
@given(data=st.one_of(st.binary(max_size=200), tree_values().map(msgspec.msgpack.encode)))
def test_random_bytes_are_malformed(decode: Decode, data: bytes) -> None:
    refuses(decode, data)


@some
@given(everything(), st.data())
def test_a_truncated_value_is_malformed(value: msgspec.Struct, data: st.DataObject) -> None:
    whole = msgspec.msgpack.encode(value)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(MalformedError):
        decoder_of(type(value))(cut)
    with pytest.raises(MalformedError):
        decoder_of(type(value))(whole + b"\x00")


@some
@given(everything(), st.data())
def test_flipped_bytes_are_malformed_or_another_value(value: msgspec.Struct, data: st.DataObject) -> None:
    whole = bytearray(msgspec.msgpack.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for decode in DECODERS.values():
        refuses(decode, bytes(whole))


@pytest.mark.parametrize("tag", ["", "episode", "EpisodeTaken", "generate2", 7, None, ["run_ended"]])
def test_an_unknown_tag_is_malformed(tag: object) -> None:
    data = msgspec.msgpack.encode({"type": tag, "id": "x"})
    for decode in (codec.decode_event, codec.decode_message):
        with pytest.raises(MalformedError):
            decode(data)


def test_events_are_no_messages_and_messages_no_events() -> None:
    for struct in EVENTS:
        with pytest.raises(MalformedError):
            codec.decode_message(msgspec.msgpack.encode(sample(struct)))
    for struct in MESSAGES:
        with pytest.raises(MalformedError):
            codec.decode_event(msgspec.msgpack.encode(sample(struct)))


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("deep", [b"\x91" * 100_000, b"\x81\xa1a" * 100_000], ids=["arrays", "maps"])
def test_deep_nesting_is_malformed(decode: Decode, deep: bytes) -> None:
    for data in (deep, deep + b"\xc0", b"\x82\xa4type\xa9run_ended\xa1z" + deep, b"\x81\xa5later" + deep):
        with pytest.raises(MalformedError):
            decode(data)


@pytest.mark.parametrize(
    "head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
def test_a_huge_announced_size_is_malformed(decode: Decode, head: bytes) -> None:
    for data in (head, b"\x82\xa4type\xa9run_ended\xa2id" + head):
        with pytest.raises(MalformedError):
            decode(data)


@given(st.lists(texts, max_size=5))
def test_generated_texts_round_trip(generated: list[str]) -> None:
    assert codec.decode_generated(codec.encode_generated(generated)) == generated
