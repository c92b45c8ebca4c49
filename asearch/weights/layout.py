"""Where the tensors of a safetensors file lie, read from its header alone.

The format (huggingface/safetensors, version 1): eight bytes little-endian length, a JSON header of that length, then the
tensors' bytes one after the other without gaps.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from asearch.errors import ChecksumError

LENGTH = struct.Struct("<Q")
MAX_HEADER_BYTES = 100_000_000
"""As in safetensors itself."""


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes [start, end) of a file, and the tensor that they are."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor of a file: its extent, its type as safetensors names it (`F32`, `BF16`), its shape."""

    extent: Extent
    dtype: str
    shape: tuple[int, ...]


def places(header: bytes, size_bytes: int, file: str) -> list[TensorPlace]:
    """The tensors of a file of `size_bytes` in the order of their bytes; `header` with its length before it.

    Raises ChecksumError for a header that is none, or that does not describe all of the file.
    """
    try:
        (length,) = LENGTH.unpack_from(header)
        raw = msgspec.json.decode(header[LENGTH.size : LENGTH.size + length], type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (struct.error, msgspec.MsgspecError) as error:
        raise ChecksumError(f"{file} has no readable safetensors header: {error}") from error
    begin = LENGTH.size + length
    found = [
        TensorPlace(Extent(name, begin + entry.data_offsets[0], begin + entry.data_offsets[1]), entry.dtype, tuple(entry.shape))
        for name, entry in entries.items()
    ]
    found.sort(key=lambda place: (place.extent.start, place.extent.end))
    at = begin
    for place in found:
        if place.extent.start != at or place.extent.end < at:
            raise ChecksumError(f"{file}: the header leaves a gap before {place.extent.name}, or lets it overlap another tensor")
        at = place.extent.end
    if at != size_bytes:
        raise ChecksumError(f"{file} has {size_bytes} bytes; its header describes {at}")
    return found


def header_bytes(first: bytes, file: str) -> int:
    """The size of header and length together, from the first eight bytes. Raises ChecksumError."""
    if len(first) < LENGTH.size:
        raise ChecksumError(f"{file} is no safetensors file: it has {len(first)} bytes")
    (length,) = LENGTH.unpack_from(first)
    if length > MAX_HEADER_BYTES:
        raise ChecksumError(f"{file} is no safetensors file: a header of {length} bytes is over {MAX_HEADER_BYTES}")
    return LENGTH.size + length


def runs(extents: Sequence[Extent], least_bytes: int) -> list[list[Extent]]:
    """The extents cut into runs of at least `least_bytes` each, the last one excepted; none is cut itself."""
    cut: list[list[Extent]] = [[]]
    for extent in extents:
        if cut[-1] and cut[-1][-1].end - cut[-1][0].start >= least_bytes:
            cut.append([])
        cut[-1].append(extent)
    return [run for run in cut if run]
