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
from schemas.events import (
    BlobStored,
    CheckpointCommitted,
    DeadlineNeared,
    EpisodeGraded,
    Event,
    RunStarted,
    TokensGenerated,
    TrainerClaimed,
)
from schemas.records import Column, Reward, RewardItem
from schemas.topology import fact_of, is_in_place, subject

Decode = Callable[[bytes], object]

DECODERS: dict[str, Decode] = {
    "event": codec.decode_event,
    "message": codec.decode_message,
    "trajectory": codec.decode_trajectory,
    "step tokens": codec.decode_step_tokens,
    "generated": codec.decode_generated,
    "result": codec.decode_result,
}
some = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
texts = st.text(max_size=12)
numbers = st.integers(min_value=-(2**63), max_value=2**64 - 1)

LEAVES: dict[type[types.Type], st.SearchStrategy[Any]] = {
    types.NoneType: st.none(),
    types.StrType: texts,
    types.BytesType: st.binary(max_size=12),
    types.BoolType: st.booleans(),
}


def values(kind: types.Type) -> st.SearchStrategy[Any]:
    """Every value a field of this type may have; often small."""
    match kind:
        case types.StructType() if kind.cls is Column:
            return st.one_of(columns(), instances(Column).map(lambda column: msgspec.structs.replace(column, dtype="later")))
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
        case types.IntType():
            return numbers if kind.ge is None else st.integers(kind.ge, 2**64 - 1)
        case types.FloatType():
            return st.floats(allow_nan=False, allow_infinity=kind.ge is None)
        case _:
            return LEAVES[type(kind)]


def columns() -> st.SearchStrategy[Column]:
    """Columns whose bytes are as many as their shape says."""

    def column(dtype: str, shape: tuple[int, ...]) -> Column:
        return Column(dtype=dtype, shape=shape, data=bytes(math.prod(shape, start=codec.ITEM_BYTES[dtype])))

    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    return st.builds(column, st.sampled_from(sorted(codec.ITEM_BYTES)), shapes)


def instances(struct: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    """Instances with and without the fields that have defaults."""
    fields = types.type_info(struct).fields
    needed = {field.name: values(field.type) for field in fields if field.required}
    free = {field.name: values(field.type) for field in fields if not field.required}
    return st.fixed_dictionaries(needed, optional=free).map(lambda given: struct(**given))


def decoder_of(struct: type[msgspec.Struct]) -> Decode:
    if struct in EVENTS:
        return codec.decode_event
    names = {"ToolResult": "result", "StepTokens": "step tokens"}
    return codec.decode_message if struct in MESSAGES else DECODERS[names.get(struct.__name__, "trajectory")]


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


def with_fields(event: type[msgspec.Struct], **fields: object) -> bytes:
    """The bytes of a sample with some fields as no encoder of ours would write them."""
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(msgspec.msgpack.encode(good(event))), **fields})


def good(event: type[msgspec.Struct]) -> msgspec.Struct:
    column = Column(dtype="u4", shape=(2,), data=bytes(8))
    value = sample(event)
    return msgspec.structs.replace(value, columns={"ids": column}) if event is TokensGenerated else value


def raw_column(**fields: object) -> dict[str, object]:
    return {"ids": {"dtype": "u4", "shape": [2], "data": bytes(8), **fields}}


NOT_EVENTS = {
    "truncated": msgspec.msgpack.encode(sample(RunStarted))[:-1],
    "trailing bytes": msgspec.msgpack.encode(sample(RunStarted)) + b"\x00",
    "no bytes": b"",
    "not msgpack": b"\xc1",
    "a type of a later build": with_fields(RunStarted, type="episode_judged"),
    "no type": msgspec.msgpack.encode({"id": "x"}),
    "NaN reward": with_fields(EpisodeGraded, reward={"value": math.nan}),
    "infinite weight": with_fields(
        EpisodeGraded, reward={"value": 1.0, "items": [{"name": "a", "value": 1.0, "weight": math.inf}]}
    ),
    "negative step": with_fields(TrainerClaimed, step=-1),
    "negative sequence": with_fields(CheckpointCommitted, watermark=-1),
    "negative interval": with_fields(CheckpointCommitted, counted=[{"first": -1, "last": 2}]),
    "negative chunk": with_fields(BlobStored, index=-1),
    "too few bytes": with_fields(TokensGenerated, columns=raw_column(data=bytes(7))),
    "another type": with_fields(TokensGenerated, columns=raw_column(dtype="f8")),
    "more dimensions": with_fields(TokensGenerated, columns=raw_column(shape=[2, 2])),
    "negative shape": with_fields(TokensGenerated, columns=raw_column(shape=[-2, -1])),
    "deep nesting": b"\x82\xa4type\xa9run_ended\xa1z" + b"\x91" * 100_000,
}
NAMES = {
    "truncated": "truncated",
    "trailing bytes": "trailing_bytes",
    "no bytes": "truncated",
    "not msgpack": "no_msgpack",
    "a type of a later build": "unknown_type",
    "no type": "unknown_type",
    "too few bytes": "wrong_column",
    "another type": "wrong_column",
    "more dimensions": "wrong_column",
    "deep nesting": "too_deep",
}


@pytest.mark.parametrize("what", NOT_EVENTS)
def test_what_is_refused_is_refused_by_name(what: str) -> None:
    with pytest.raises(MalformedError) as refused:
        codec.decode_event(NOT_EVENTS[what])
    assert refused.value.name == NAMES.get(what, "wrong_field")
    assert f"({refused.value.name})" in str(refused.value)


@settings(some, max_examples=300)
@given(
    st.one_of(st.binary(max_size=300), tree_values().map(msgspec.msgpack.encode), everything().map(msgspec.msgpack.encode)),
    st.data(),
)
def test_any_bytes_are_malformed_or_an_event_that_encodes_to_an_equal_one(data: bytes, draw: st.DataObject) -> None:
    bent = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 2)) if bent else 0):
        bent[draw.draw(st.integers(0, len(bent) - 1))] = draw.draw(st.integers(0, 255))
    try:
        event = codec.decode_event(bytes(bent))
    except MalformedError:
        return
    assert isinstance(event, Event)
    again = codec.decode_event(codec.encode(event))
    assert type(again) is type(event)
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(event)


def placed(event: type[Event], **fields: str) -> tuple[Event, list[str]]:
    """A sample whose key fields can be part of a subject, and its key."""
    value: Any = good(event)
    for name in fact_of(event).keyed_by:
        if name == "task":
            value = msgspec.structs.replace(value, key=msgspec.structs.replace(value.key, task=fields.get(name, "k-task")))
        elif isinstance(getattr(value, name), str):
            value = msgspec.structs.replace(value, **{name: fields.get(name, f"k-{name}")})
    key = ["k-task" if name == "task" else str(getattr(value, name)) for name in fact_of(event).keyed_by]
    return value, [
        token.rpartition("-")[2] if name == "stream" else token for token, name in zip(key, fact_of(event).keyed_by, strict=True)
    ]


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_is_in_place_under_its_own_subject_alone(kind: type[Event]) -> None:
    event, key = placed(kind)
    own = subject("run", kind, *key)
    assert is_in_place(own, event)
    for other in EVENTS:
        if other is not kind and len(fact_of(other).keyed_by) == len(key):  # type: ignore[arg-type]
            assert not is_in_place(subject("run", other, *key), event)  # type: ignore[arg-type]
    for at in range(len(key)):
        assert not is_in_place(subject("run", kind, *key[:at], "other", *key[at + 1 :]), event)
    assert not is_in_place(f"{own}.more", event)
    assert not is_in_place(own.replace("asearch.run.", "asearch.run.more."), event)


def test_an_event_of_an_episode_is_not_taken_for_one_of_its_namesake() -> None:
    event = DeadlineNeared(id="x", episode="1")
    assert not is_in_place(subject("run", DeadlineNeared, "e-1"), event)


def test_finite_rewards_of_any_size_survive() -> None:
    reward = Reward(value=-1.7e308, items=[RewardItem(name="a", value=5e-324, weight=0.0)])
    value = msgspec.structs.replace(sample(EpisodeGraded), reward=reward)
    assert codec.decode_event(msgspec.msgpack.encode(value)) == value
