"""Deltas of weights: what is applied is the new version bit by bit, and what is malformed is refused and writes nowhere else."""

import io
import os
import struct
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.errors import ChecksumError
from asearch.weights import delta
from asearch.weights.delta import OpenTensor, Patch, encode, head_bytes, part_bytes, write_delta
from asearch.weights.layout import Extent, TensorPlace

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C128": 16}
SPECIAL = {2: [0x7FC0, 0x7F81, 0xFFC1, 0x8000, 0x0000], 4: [0x7FC00000, 0x7F800001, 0xFFC00001, 0x80000000, 0]}
"""NaNs of several kinds, minus zero, zero."""
GUARD = b"\xa5" * 64


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Generator[None]:
    kept, delta.BLOCK_ELEMENTS = delta.BLOCK_ELEMENTS, 700
    yield
    delta.BLOCK_ELEMENTS = kept


@contextmanager
def in_file(place: TensorPlace, data: bytes) -> Generator[OpenTensor]:
    """A tensor that begins at byte 64 of a file, guarded on both sides."""
    handle = os.memfd_create("tensor")
    try:
        os.pwrite(handle, GUARD + data + GUARD, 0)
        yield OpenTensor(handle, place)
    finally:
        os.close(handle)


def content(tensor: OpenTensor) -> bytes:
    """Of the file; the guards are asserted to be whole."""
    size = tensor.place.extent.end - tensor.place.extent.start
    data = os.pread(tensor.handle, 1 << 24, 0)
    assert len(data) == size + 2 * len(GUARD) and data[:64] == data[-64:] == GUARD
    return data[64:-64]


@st.composite
def updates(draw: st.DrawFn) -> tuple[TensorPlace, bytes, bytes]:
    """A place and the bytes of its tensor before and after: nothing, some or all of it changed."""
    dtype = draw(st.sampled_from(sorted(WIDTHS)))
    shape = draw(st.sampled_from([(), (0,), (3, 0), (1,), (7,), (700,), (701,), (30, 47), (3, 700), (5000,)]))
    width, n = WIDTHS[dtype], int(np.prod(shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    old = rng.integers(0, 256, n * width, dtype=np.uint8)
    new = old.reshape(n, width).copy()
    fraction = draw(st.sampled_from([0.0, 0.001, 0.02, 0.3, 0.9, 1.0]))
    rows = rng.random(n) < fraction
    new[rows] = rng.integers(0, 256, (int(rows.sum()), width), dtype=np.uint8)
    if width in SPECIAL and n:
        for at, value in enumerate(SPECIAL[width]):
            new[rng.integers(0, n)] = np.frombuffer(struct.pack("<Q", value)[:width], np.uint8)
            old[at * width % len(old)] ^= 0x80
    start = len(GUARD)
    return TensorPlace(Extent("w", start, start + n * width), dtype, shape), old.tobytes(), new.tobytes()


def made(place: TensorPlace, old: bytes, new: bytes, most_bytes: int = 1 << 30) -> bytes:
    sink = io.BytesIO()
    with in_file(place, old) as before, in_file(place, new) as after:
        assert write_delta({"w": before}, [after], sink, most_bytes)
    return sink.getvalue()


@settings(max_examples=120, deadline=None)
@given(updates(), st.integers(1, 1 << 12))
def test_what_is_applied_is_the_new_tensor(update: tuple[TensorPlace, bytes, bytes], piece: int) -> None:
    place, old, new = update
    data = made(place, old, new)
    (size,) = part_bytes(data[: head_bytes(1)], 1)
    part = memoryview(data)[head_bytes(1) :]
    assert len(part) == size <= len(new) + 8 * (1 + len(new) // 700)
    with in_file(place, old) as base, in_file(place, bytes(len(new))) as sink:
        patch = Patch(base, sink)
        for at in range(0, len(part), piece):
            patch.feed(part[at : at + piece])
        assert patch.checksum() == xxhash.xxh3_128_hexdigest(new)
        assert content(sink) == new and content(base) == old


@settings(max_examples=150, deadline=None)
@given(updates(), st.data())
def test_what_is_malformed_is_refused_and_writes_nowhere_else(
    update: tuple[TensorPlace, bytes, bytes], data: st.DataObject
) -> None:
    place, old, new = update
    part = bytearray(made(place, old, new)[head_bytes(1) :])
    kind = data.draw(st.sampled_from(["cut", "flip", "longer", "random"]))
    if kind == "cut":
        part = part[: data.draw(st.integers(0, max(0, len(part) - 1)))]
    elif kind == "longer":
        part += data.draw(st.binary(min_size=1, max_size=20))
    elif kind == "random":
        part = bytearray(data.draw(st.binary(max_size=200)))
    elif part:
        part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
    with in_file(place, old) as base, in_file(place, bytes(len(new))) as sink:
        patch = Patch(base, sink)
        try:
            patch.feed(memoryview(part))
            told = patch.checksum()
        except ChecksumError as error:
            assert str(error).startswith("the delta of w ")
        else:
            # What can be applied is told from the right tensor by its checksum.
            assert kind != "longer" and told == xxhash.xxh3_128_hexdigest(content(sink))
            assert kind != "cut" or not new
        content(sink)
        assert content(base) == old


BAD_BLOCKS = {
    "no room": (struct.pack("<II", 0, 11), "block of"),
    "more values than gaps": (struct.pack("<II", 2, 3), "block of"),
    "too many gaps": (struct.pack("<II", 9, 1), "block of"),
    "beyond the block": (struct.pack("<II", 2, 2) + bytes([5, 4]) + bytes(4), "beyond its block"),
    "open end": (struct.pack("<II", 2, 2) + bytes([5, 255]) + bytes(4), "do not go with"),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a_bad_block_is_named(name: str) -> None:
    place = TensorPlace(Extent("w", 64, 84), "BF16", (10,))
    data, told = BAD_BLOCKS[name]
    with in_file(place, bytes(20)) as base, in_file(place, bytes(20)) as sink:
        with pytest.raises(ChecksumError, match=told):
            Patch(base, sink).feed(memoryview(data))
        assert content(sink) == bytes(20)


def test_a_delta_without_its_base_is_refused() -> None:
    place = TensorPlace(Extent("w", 64, 84), "BF16", (10,))
    with in_file(place, bytes(20)) as sink, pytest.raises(ChecksumError, match="of which there is none"):
        Patch(None, sink).feed(memoryview(struct.pack("<II", 1, 1) + bytes(3)))


def test_a_head_of_something_else_is_refused() -> None:
    good = made(TensorPlace(Extent("w", 64, 84), "BF16", (10,)), bytes(20), bytes(20))[: head_bytes(1)]
    for head in (good[:-1], b"", b"asdelta2" + good[8:]):
        with pytest.raises(ChecksumError, match="no delta"):
            part_bytes(head, 1)
    with pytest.raises(ChecksumError, match="2 tensors came for a version of 1"):
        part_bytes(good[:8] + struct.pack("<Q", 2) + good[16:], 1)


def test_a_delta_is_about_as_large_as_what_changed() -> None:
    rng = np.random.default_rng(0)
    old = rng.integers(0, 1 << 16, 100_000, dtype=np.uint16)
    sizes: list[int] = []
    for fraction in (0.0, 0.0001, 0.023, 0.5, 1.0):
        new = old.copy()
        new[rng.random(len(old)) < fraction] ^= 1
        sizes.append(len(encode(old, new)))
    assert sizes[0] == 8 and sizes[1] < 0.005 * old.nbytes and sizes[2] < 0.04 * old.nbytes
    assert sizes[3] < 0.8 * old.nbytes and sizes[4] == 8 + old.nbytes
    assert all(a < b for a, b in pairwise(sizes))


def test_one_that_would_be_too_large_is_given_up() -> None:
    place = TensorPlace(Extent("w", 64, 64 + 20_000), "BF16", (10_000,))
    with in_file(place, bytes(20_000)) as before, in_file(place, b"\x01" * 20_000) as after:
        sink = io.BytesIO()
        assert not write_delta({"w": before}, [after], sink, 10_000)
        assert len(sink.getvalue()) < 12_000


@pytest.mark.parametrize(("dtype", "shape"), [("F16", (10,)), ("BF16", (5, 2))])
def test_a_tensor_of_another_type_or_shape_is_told_whole(dtype: str, shape: tuple[int, ...]) -> None:
    place = TensorPlace(Extent("w", 64, 84), "BF16", (10,))
    other = TensorPlace(Extent("w", 64, 84), dtype, shape)
    sink = io.BytesIO()
    with in_file(other, bytes(20)) as before, in_file(place, bytes(20)) as after:
        assert write_delta({"w": before}, [after], sink, 1000)
        assert part_bytes(sink.getvalue()[: head_bytes(1)], 1) == [28]
