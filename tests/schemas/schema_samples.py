"""Fully populated instances of structs, the same on every machine: each value follows from where it stands."""

import zlib
from typing import Any, get_args

import msgspec
from msgspec import inspect as types

from schemas.commands import AnyMessage
from schemas.events import AnyEvent
from schemas.records import StepTokens, ToolResult, Trajectory

EVENTS: tuple[type[msgspec.Struct], ...] = get_args(AnyEvent)
MESSAGES: tuple[type[msgspec.Struct], ...] = get_args(AnyMessage)
STORED: tuple[type[msgspec.Struct], ...] = (Trajectory, ToolResult, StepTokens)


def sample(struct: type[msgspec.Struct]) -> msgspec.Struct:
    """An instance in which no field has its default. A field added later changes no other."""
    return _value(types.type_info(struct), struct.__name__)


def _value(kind: types.Type, where: str) -> Any:
    number = zlib.crc32(where.encode())
    match kind:
        case types.StructType():
            return kind.cls(**{field.name: _value(field.type, f"{where}.{field.name}") for field in kind.fields})
        case types.UnionType():
            return _value(next(each for each in kind.types if not isinstance(each, types.NoneType)), where)
        case types.ListType():
            return [_value(kind.item_type, f"{where}[{i}]") for i in range(2)]
        case types.VarTupleType():
            return tuple(_value(kind.item_type, f"{where}[{i}]") for i in range(2))
        case types.DictType():
            return {_value(kind.key_type, f"{where}<{i}>"): _value(kind.value_type, f"{where}[{i}]") for i in range(2)}
        case types.StrType():
            return f"{where.rsplit('.', 1)[-1]} é {number % 1000}"
        case types.BytesType():
            return number.to_bytes(4, "little") + b"\x00\xff"
        case types.IntType():
            return number + 1
        case types.FloatType():
            return number / 1024
        case types.BoolType():
            return True
        case _:
            raise TypeError(f"{where}: no sample of {kind}; add one here")
