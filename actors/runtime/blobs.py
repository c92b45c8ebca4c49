"""Payloads over 256 KiB, in chunks of at most 1 MiB under the episode and the hash of the whole, over any bus."""

import asyncio

import xxhash

from actors.runtime.appends import append_past_malformed, last_fact
from actors.runtime.bus import Bus
from asearch.errors import BlobMissingError, ConflictError
from schemas.events import BlobStored
from schemas.records import BlobRef
from schemas.topology import CHUNK_BYTES

PARALLEL_CHUNKS = 4
MAX_BLOB_BYTES = 1 << 30
"""A reference to more is taken for damaged."""


def _n_chunks(size_bytes: int) -> int:
    return max(1, -(-size_bytes // CHUNK_BYTES))


async def put_blob(bus: Bus, episode: str, data: bytes) -> BlobRef:
    """Store a payload. A chunk that is there already is left as it is: the subject holds the hash of the whole.

    Raises what `append` raises.
    """
    digest = xxhash.xxh3_128_hexdigest(data)
    n_chunks = _n_chunks(len(data))
    ref = BlobRef(episode=episode, hash=digest, size_bytes=len(data), n_chunks=n_chunks)
    if n_chunks == 1:
        await _put_chunk(bus, ref, 0, data)
        return ref
    limit = asyncio.Semaphore(PARALLEL_CHUNKS)

    async def put(index: int) -> None:
        async with limit:
            await _put_chunk(bus, ref, index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])

    try:
        async with asyncio.TaskGroup() as group:
            for index in range(n_chunks):
                group.create_task(put(index))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return ref


async def _put_chunk(bus: Bus, ref: BlobRef, index: int, data: bytes) -> None:
    event = BlobStored(
        id=f"blob-{ref.episode}-{ref.hash}-{index}",
        at_ns=bus.platform.now_ns(),
        episode=ref.episode,
        hash=ref.hash,
        index=index,
        n_chunks=ref.n_chunks,
        data=data,
    )
    try:
        await append_past_malformed(bus, event, ref.episode, ref.hash, str(index), expected=0)
    except ConflictError:
        return


async def get_blob(bus: Bus, ref: BlobRef) -> bytes:
    """Read a payload and verify it. Raises BlobMissingError."""
    if ref.size_bytes > MAX_BLOB_BYTES or ref.n_chunks != _n_chunks(ref.size_bytes):
        raise BlobMissingError(f"{ref.n_chunks} chunks cannot hold the {ref.size_bytes} bytes of blob {ref.hash}")
    if ref.n_chunks == 1:
        data = await _get_chunk(bus, ref, 0)
    else:
        limit = asyncio.Semaphore(PARALLEL_CHUNKS)

        async def get(index: int) -> bytes:
            async with limit:
                return await _get_chunk(bus, ref, index)

        try:
            async with asyncio.TaskGroup() as group:
                chunks = [group.create_task(get(index)) for index in range(ref.n_chunks)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        data = b"".join(chunk.result() for chunk in chunks)
    if len(data) != ref.size_bytes or xxhash.xxh3_128_hexdigest(data) != ref.hash:
        raise BlobMissingError(f"the bytes of blob {ref.hash} of episode {ref.episode} are not those that were stored")
    return data


async def _get_chunk(bus: Bus, ref: BlobRef, index: int) -> bytes:
    event = await last_fact(bus, BlobStored, ref.episode, ref.hash, str(index))
    if event is None:
        raise BlobMissingError(
            f"chunk {index} of {ref.n_chunks} of blob {ref.hash} of episode {ref.episode} is not stored: it was purged or lost"
        )
    return event.data
