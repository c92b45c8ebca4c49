"""Token ids and log-probabilities as packed little-endian bytes: immutable, comparable, and cheap to join."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from schemas.records import Column

ID_BYTES = 4
ZERO_LOGPROB = b"\0\0\0\0"


def pack_ids(ids: Sequence[int]) -> bytes:
    """Pack ids as u4."""
    return np.asarray(ids, dtype="<u4").tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """Ids of packed u4 bytes."""
    return cast(list[int], np.frombuffer(data, dtype="<u4").tolist())


def pack_logprobs(logprobs: Sequence[float]) -> bytes:
    """Pack log-probabilities as f4."""
    return np.asarray(logprobs, dtype="<f4").tobytes()


def unpack_logprobs(data: bytes) -> npt.NDArray[np.float32]:
    """A read-only (n,) view of packed f4 bytes."""
    return np.frombuffer(data, dtype="<f4")


def n_tokens(data: bytes) -> int:
    """Number of tokens in packed ids or log-probabilities."""
    return len(data) // ID_BYTES


def column(dtype: str, data: bytes) -> Column:
    """A one-dimensional column around packed bytes; `dtype` as in `Column`, e.g. `u4`."""
    return Column(dtype=dtype, shape=(len(data) // int(dtype[1:]),), data=data)
