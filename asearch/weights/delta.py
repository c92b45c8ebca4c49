"""What has changed between two versions of the same tensors, as bytes: made at the source, applied by a puller.

A delta is, all numbers little-endian:

- eight bytes `asdelta1`, the number of tensors (u64), and for each tensor the size of its part (u64). The tensors are those of
  the new version, file by file in the order of the files' names, within a file in the order of their bytes;
- the parts, one after the other. A part is a sequence of blocks, each of `BLOCK_ELEMENTS` elements of the tensor, the last one
  of what is left. A block is the number of its gap bytes (u32), the number of its changed elements (u32), gaps, and values;
- a *gap* is the number of elements between a changed one and the changed one before it (or the block's begin). A byte below 255
  is a gap; 255 means that 255 more elements have not changed, and the gap goes on. So what hardly changes costs little: a byte
  for each changed element, and one for every 255 elements at most;
- *values* are the changed elements as they are in the file. A block of which all elements are told has no gaps: one that is as
  large told whole, or whose tensor the old version did not have with this type and shape.

Elements are compared as bytes, so that every NaN and both zeros are what they were. Nothing here is trusted: what is applied is
compared with the announced xxh3-128 of the whole tensor.
"""

import contextlib
import math
import os
import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from asearch.errors import ChecksumError
from asearch.weights.layout import TensorPlace

BLOCK_ELEMENTS = 1 << 18
"""So few that the work on a block stays in the processor's cache."""
MAGIC = b"asdelta1"
DELTA_FROM = "delta-from-"
"""A source answers `/NEW/delta-from-OLD` with the delta between two folders."""
_SKIP = 255
_COUNT = struct.Struct("<Q")
_BLOCK = struct.Struct("<II")
_TYPES: dict[int, np.dtype[np.unsignedinteger]] = {n: np.dtype(f"<u{n}") for n in (1, 2, 4, 8)}


@dataclass(frozen=True, slots=True)
class OpenTensor:
    """A tensor in an open file."""

    handle: int
    place: TensorPlace

    def read(self, first: int, n_elements: int) -> "NDArray[np.unsignedinteger]":
        """Elements from the file, as numbers of the same width. Raises ChecksumError if it cannot be read or is too short."""
        kind = element_type(self.place)
        found = np.empty(n_elements, kind)
        view = found.data.cast("B")
        at = self.place.extent.start + first * kind.itemsize
        while view:
            try:
                n = os.preadv(self.handle, [view], at)
            except OSError as error:
                raise ChecksumError(f"the file of {self.place.extent.name} cannot be read: {error}") from error
            if not n:
                raise ChecksumError(f"the file of {self.place.extent.name} ends early")
            view, at = view[n:], at + n
        return found


def element_type(place: TensorPlace) -> np.dtype[np.unsignedinteger]:
    """Numbers as wide as a tensor's elements; bytes where elements are of another width."""
    n_elements, n_bytes = math.prod(place.shape), place.extent.end - place.extent.start
    width = n_bytes // n_elements if n_elements and n_bytes % n_elements == 0 else 1
    return _TYPES.get(width, _TYPES[1])


def count_elements(place: TensorPlace) -> int:
    """Elements of `element_type`."""
    return (place.extent.end - place.extent.start) // element_type(place).itemsize


def head_bytes(n_tensors: int) -> int:
    """The size of what is before the parts."""
    return len(MAGIC) + _COUNT.size * (1 + n_tensors)


def write_delta(old: Mapping[str, OpenTensor], new: Sequence[OpenTensor], sink: BinaryIO, most_bytes: int) -> bool:
    """Write into an empty file what makes `new` of `old`; False, with less than all written, where it is over `most_bytes`.

    Raises OSError, ChecksumError for files that are shorter than their headers say.
    """
    head = [MAGIC, _COUNT.pack(len(new))]
    sink.seek(head_bytes(len(new)))
    for tensor in new:
        begun = sink.tell()
        base = alike(old, tensor.place)
        n_elements = count_elements(tensor.place)
        for first in range(0, n_elements, BLOCK_ELEMENTS):
            n = min(BLOCK_ELEMENTS, n_elements - first)
            sink.write(encode(base.read(first, n) if base else None, tensor.read(first, n)))
            if sink.tell() > most_bytes:
                return False
        head.append(_COUNT.pack(sink.tell() - begun))
    sink.seek(0)
    sink.write(b"".join(head))
    sink.flush()
    return True


def alike(old: Mapping[str, OpenTensor], place: TensorPlace) -> OpenTensor | None:
    """The old tensor of the same name, if it has the same type and shape."""
    base = old.get(place.extent.name)
    if base is None or (base.place.dtype, base.place.shape) != (place.dtype, place.shape):
        return None
    return base if count_elements(base.place) == count_elements(place) else None


def part_bytes(head: bytes, n_tensors: int) -> list[int]:
    """The sizes of the parts. Raises ChecksumError where this is not the head of a delta of so many tensors."""
    if len(head) != head_bytes(n_tensors) or head[: len(MAGIC)] != MAGIC:
        raise ChecksumError("this is no delta of weights")
    numbers = struct.unpack_from(f"<{1 + n_tensors}Q", head, len(MAGIC))
    if numbers[0] != n_tensors:
        raise ChecksumError(f"a delta of {numbers[0]} tensors came for a version of {n_tensors}")
    return list(numbers[1:])


def encode(old: "NDArray[np.unsignedinteger] | None", new: "NDArray[np.unsignedinteger]") -> bytes:
    """One block; the arrays have the same size and type."""
    differs = None if old is None else old != new
    if differs is not None and np.count_nonzero(differs) * (1 + new.itemsize) < new.nbytes:
        changed = np.flatnonzero(differs)
        gaps = np.diff(changed, prepend=-1) - 1
        n_skips = gaps // _SKIP
        n_gap_bytes = len(gaps) + int(n_skips.sum())
        if n_gap_bytes + len(changed) * new.itemsize < new.nbytes:
            coded = np.full(n_gap_bytes, _SKIP, np.uint8)
            coded[np.cumsum(n_skips + 1) - 1] = gaps - _SKIP * n_skips
            return _BLOCK.pack(n_gap_bytes, len(changed)) + coded.tobytes() + new[changed].tobytes()
    return _BLOCK.pack(0, len(new)) + new.tobytes()


class Patch:
    """Takes the part of one tensor in any pieces and writes the new tensor, block by block."""

    def __init__(self, base: OpenTensor | None, new: OpenTensor) -> None:
        """`new` is where it is written; `base` the old tensor, if there is one that is `alike`."""
        self._base = base
        self._new = new
        self._type = element_type(new.place)
        self._n_elements = count_elements(new.place)
        self._at = 0
        self._counts: tuple[int, int] | None = None
        self._n_needed = _BLOCK.size
        self._pending = bytearray()
        self._hash = xxhash.xxh3_128()

    def feed(self, data: memoryview) -> None:
        """The next bytes. Raises ChecksumError where they cannot be those of the tensor; OSError."""
        while len(data):
            if self._at == self._n_elements:
                raise self._wrong("goes on after its last block")
            n = min(len(data), self._n_needed - len(self._pending))
            self._pending += data[:n]
            data = data[n:]
            while len(self._pending) == self._n_needed and self._at < self._n_elements:
                self._advance()

    def checksum(self) -> str:
        """Of the tensor that was written. Raises ChecksumError before its end."""
        if self._at < self._n_elements or self._pending:
            raise self._wrong("ends early")
        return self._hash.hexdigest()

    def _advance(self) -> None:
        n_elements = min(BLOCK_ELEMENTS, self._n_elements - self._at)
        if self._counts is None:
            n_gap_bytes, n_values = _BLOCK.unpack(self._pending)
            is_whole = n_gap_bytes == 0 and n_values == n_elements
            is_coded = n_values <= n_gap_bytes <= n_values + n_elements // _SKIP and n_values <= n_elements
            if not is_whole and not is_coded:
                raise self._wrong(f"has a block of {n_gap_bytes} gap bytes and {n_values} values for {n_elements} elements")
            self._counts = n_gap_bytes, n_values
            self._n_needed = n_gap_bytes + n_values * self._type.itemsize
        else:
            self._write(self._decode(*self._counts, n_elements))
            self._counts, self._n_needed = None, _BLOCK.size
        self._pending = bytearray()

    def _decode(self, n_gap_bytes: int, n_values: int, n_elements: int) -> "NDArray[np.unsignedinteger]":
        values = np.frombuffer(self._pending, self._type, n_values, n_gap_bytes)
        if n_gap_bytes == 0 and n_values == n_elements:
            return values
        if self._base is None:
            raise self._wrong("refers to an old tensor, of which there is none of this type and shape")
        gaps = np.frombuffer(self._pending, np.uint8, n_gap_bytes)
        ends = np.flatnonzero(gaps != _SKIP)
        if len(ends) != n_values or (n_gap_bytes and gaps[-1] == _SKIP):
            raise self._wrong("has gaps that do not go with its values")
        changed = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(n_values)
        if n_values and changed[-1] >= n_elements:
            raise self._wrong("names an element beyond its block")
        block = self._base.read(self._at, n_elements)
        block[changed] = values
        return block

    def _write(self, block: "NDArray[np.unsignedinteger]") -> None:
        data = block.data.cast("B")
        self._hash.update(data)
        at = self._new.place.extent.start + self._at * self._type.itemsize
        while data:
            n = os.pwrite(self._new.handle, data, at)
            data, at = data[n:], at + n
        self._at += len(block)

    def _wrong(self, what: str) -> ChecksumError:
        return ChecksumError(f"the delta of {self._new.place.extent.name} {what}")


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Generator[int]:
    """A file, not a symbolic link to one. Raises OSError."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)
