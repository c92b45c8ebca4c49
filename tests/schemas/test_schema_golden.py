"""What was written once is read for ever."""

from pathlib import Path

import msgspec
import pytest
from golden_files import GOLDEN, files_of, is_covered
from schema_samples import EVENTS, MESSAGES, STORED, sample
from write_golden import write_missing

from schemas import codec
from schemas.topology import TOPOLOGY

ALL = {struct.__name__: struct for struct in (*EVENTS, *MESSAGES, *STORED)}
FILES = sorted(path.name for path in GOLDEN.glob("*.msgpack"))


def decode(struct: type[msgspec.Struct], data: bytes) -> object:
    if struct in EVENTS:
        return codec.decode_event(data)
    if struct in MESSAGES:
        return codec.decode_message(data)
    stored = {"Trajectory": codec.decode_trajectory, "StepTokens": codec.decode_step_tokens}
    return stored.get(struct.__name__, codec.decode_result)(data)


@pytest.mark.parametrize("name", FILES)
def test_golden_bytes_decode_to_their_value_and_encode_to_themselves(name: str) -> None:
    path = GOLDEN / name
    struct = ALL.get(name.split(".")[0])
    assert struct is not None, f"{name} is of a type that was removed: bytes like these may be in use"
    data = path.read_bytes()
    value = decode(struct, data)
    expected = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=struct)
    assert type(value) is struct
    assert value == expected
    # The same keys with the same values in the same order. A struct that has got a 16th field writes a wider map header.
    again, was = msgspec.msgpack.decode(msgspec.msgpack.encode(value)), msgspec.msgpack.decode(data)
    assert list(again.items()) == list(was.items())
    if data == msgspec.msgpack.encode(sample(struct)):
        assert msgspec.msgpack.encode(value) == data


@pytest.mark.parametrize("name", FILES)
def test_golden_bytes_with_the_fields_of_a_later_build_decode_to_the_same_value(name: str) -> None:
    struct = ALL[name.split(".")[0]]
    data = (GOLDEN / name).read_bytes()
    later = {**msgspec.msgpack.decode(data), "later": {"deep": [[1, None], b"x"]}, "tokenizer": "v2", "weights": 0.5}
    assert decode(struct, msgspec.msgpack.encode(later)) == decode(struct, data)


@pytest.mark.parametrize("struct", ALL.values(), ids=ALL)
def test_every_type_has_golden_bytes_of_all_its_fields(struct: type[msgspec.Struct]) -> None:
    assert files_of(struct), f"{struct.__name__} has no golden file: run python tests/schemas/write_golden.py"
    data = msgspec.msgpack.encode(sample(struct))
    assert is_covered(struct, data), f"{struct.__name__} has changed: run python tests/schemas/write_golden.py"


def test_every_fact_of_the_topology_has_golden_bytes() -> None:
    missing = [fact.event.__name__ for fact in TOPOLOGY.facts if not files_of(fact.event)]
    missing += [row.message.__name__ for row in TOPOLOGY.core if not files_of(row.message)]
    assert not missing


def test_a_sample_leaves_no_field_at_its_default() -> None:
    for struct in ALL.values():
        left_out = set(msgspec.to_builtins(sample(struct))) - {"type"} ^ set(struct.__struct_encode_fields__)
        assert not left_out, f"{struct.__name__}: {left_out}"


def test_the_writer_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("golden_files", "write_golden"):
        monkeypatch.setattr(f"{module}.GOLDEN", tmp_path)
    assert len(write_missing()) == len(ALL)
    (tmp_path / "RunEnded.1.msgpack").write_bytes(b"an older form")
    assert write_missing() == ["RunEnded.2"]
    assert (tmp_path / "RunEnded.1.msgpack").read_bytes() == b"an older form"
    assert write_missing() == []
