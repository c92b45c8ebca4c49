"""Weights received from a collective straight into the server; what was announced otherwise, or fails, is pulled."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, runtime_checkable

import structlog

from actors.runtime.platform import Platform
from actors.runtime.transfer.broadcasting import TAKES
from actors.runtime.transfer.transfer import LostVersionError, SpoiledServerError, Transfer, WeightReceiver
from actors.runtime.transfer.verifying import ByTensor, TellingServer, Verification, refuse_others
from asearch.errors import AsearchError, EngineError, TransferError, WeightsGoneError
from asearch.weights.layout import TensorPlace
from schemas.events import PolicyPublished
from schemas.records import Broadcast, WeightManifest

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of types and torch's."""
REACH_S = 5.0
"""How long the sender's address may take to answer before no server is asked to meet it there."""


@runtime_checkable
class GroupServer(WeightReceiver, TellingServer, Protocol):
    """A server that can be a member of an update group, and tell what it has received."""

    async def join_update_group(
        self, address: str, port: int, rank: int, world_size: int, group: str, backend: str, timeout_s: float
    ) -> None:
        """Become a member. Raises EngineError."""
        ...

    async def leave_update_group(self, group: str) -> None:
        """End the membership. Raises EngineError."""
        ...

    async def receive_weights(
        self, group: str, tensors: Sequence[tuple[str, str, Sequence[int]]], version: str, timeout_s: float
    ) -> None:
        """Take a whole version. Raises EngineError."""
        ...


class BroadcastReceiver:
    """Takes part in the broadcasts that name this engine; `other` is the way of all other versions."""

    def __init__(
        self,
        platform: Platform,
        actor_id: str,
        other: Transfer,
        headers: Callable[[WeightManifest], Awaitable[list[TensorPlace]]],
        takes: bool = True,
        verification: Verification | None = None,
    ) -> None:
        """`headers` tells the tensors of a version in the order in which they are sent; `takes` whether it may be a member.

        `verification` compares what was received, tensor by tensor unless given.
        """
        self._platform = platform
        self._actor_id = actor_id
        self._other = other
        self._headers = headers
        self._verification = verification or ByTensor()
        self._expected: dict[str, str] = {}
        self._log = structlog.get_logger()
        self._group: tuple[str, WeightReceiver] | None = None
        self._tensors: list[tuple[str, str, Sequence[int]]] | None = None
        """Of the version that is to be received; None: `other` has it."""
        self._tried = ""
        """Id of the newest version of which a broadcast was tried: it is sent once, whoever comes again would wait in vain."""
        self._given_up = ""
        """Group that the server has left: its other members go on with it, and nobody can come back."""
        self._takes = float(takes)
        self._n_received = 0
        self._n_failed = 0
        self._transfer_s = 0.0

    async def prepare(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Join the announced group, or get the version the other way. Raises as that does."""
        self._tensors = None
        broadcast = published.manifest.broadcast
        is_new, self._tried = published.id != self._tried, published.id
        if broadcast is not None and is_new and self._is_named(broadcast) and isinstance(server, GroupServer):
            try:
                self._tensors = await self._named(published.manifest)
                self._expected = await self._verification.expected(published.manifest)
                await self._join(server, broadcast)
                return
            except (EngineError, TransferError) as error:
                await self._fail(server, published, error)
                self._tensors = None
        await self._other.prepare(server, published)

    async def load(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Receive the version and compare its checksums, or load what the other way brought.

        Raises EngineError, and SpoiledServerError when the server has lost its weights and no others are to be had.
        """
        broadcast = published.manifest.broadcast
        if self._tensors is None or broadcast is None or not isinstance(server, GroupServer):
            await self._other.load(server, published)
            return
        begun_s = self._platform.monotonic()
        try:
            await server.receive_weights(broadcast.group, self._tensors, str(published.version), broadcast.timeout_s)
            told = await self._verification.told(server)
            refuse_others(told, self._expected, "tensors or parameters were not received as they were announced")
        except (EngineError, TransferError) as error:
            await self._fail(server, published, error)
            await self._replace(server, published)
            return
        self._n_received += 1
        self._transfer_s = self._platform.monotonic() - begun_s

    async def close(self) -> None:
        """Nothing of a broadcast outlives the server."""
        await self._other.close()

    def gauges(self) -> dict[str, float]:
        """Whether this engine can be a member; broadcasts received and failed; seconds of the last version."""
        told = {TAKES: self._takes, "n_broadcasts": self._n_received, "n_broadcasts_failed": self._n_failed}
        other = self._other.gauges()
        return other | told | ({"transfer_s": self._transfer_s} if self._tensors is not None else {})

    def _is_named(self, broadcast: Broadcast) -> bool:
        """Whether this process is a member: the group does not wait for one that has this engine's name since."""
        if self._actor_id not in broadcast.members:
            return False
        return not broadcast.pids or broadcast.pids[broadcast.members.index(self._actor_id)] == os.getpid()

    async def _named(self, manifest: WeightManifest) -> list[tuple[str, str, Sequence[int]]]:
        found = await self._headers(manifest)
        odd = next((place for place in found if place.dtype not in DTYPES), None)
        if odd is not None:
            raise TransferError(f"{odd.extent.name} is of type {odd.dtype}, which is not broadcast")
        return [(place.extent.name, DTYPES[place.dtype], place.shape) for place in found]

    async def _join(self, server: GroupServer, broadcast: Broadcast) -> None:
        if self._group is not None and self._group == (broadcast.group, server):
            return
        await self._leave(server)
        if broadcast.group == self._given_up:
            raise TransferError(f"this engine was in the group {broadcast.group}, and has left it")
        await _reach(broadcast)
        self._given_up = broadcast.group
        rank = 1 + broadcast.members.index(self._actor_id)
        n = 1 + len(broadcast.members)
        await server.join_update_group(
            broadcast.address, broadcast.port, rank, n, broadcast.group, broadcast.backend, broadcast.timeout_s
        )
        self._given_up = ""
        self._group = (broadcast.group, server)

    async def _leave(self, server: WeightReceiver) -> None:
        group, self._group = self._group, None
        self._given_up = group[0] if group is not None else self._given_up
        if group is not None and group[1] is server and isinstance(server, GroupServer):
            try:
                await server.leave_update_group(group[0])
            except EngineError as error:
                self._log.info("the server was not in the group any more", group=group[0], error=str(error))

    async def _fail(self, server: WeightReceiver, published: PolicyPublished, error: Exception) -> None:
        self._n_failed += 1
        self._log.warning("not received from the broadcast", version=str(published.version), error=str(error))
        await self._leave(server)

    async def _replace(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Load the version the other way, still in the pause: what the server has now may be mixed."""
        try:
            await self._other.prepare(server, published)
            await self._other.load(server, published)
        except WeightsGoneError as error:
            raise LostVersionError(f"a broadcast broke off, and the version was deleted meanwhile: {error}") from error
        except AsearchError as error:  # whatever it is: the server must not go on
            raise SpoiledServerError(f"a broadcast broke off, and the version is not to be had otherwise: {error}") from error


async def _reach(broadcast: Broadcast) -> None:
    """Raises TransferError if nobody is at the announced address: SGLang would try for half an hour, and serve nobody."""
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(broadcast.address, broadcast.port)
    except (TimeoutError, OSError) as error:
        raise TransferError(f"nobody sends at {broadcast.address}:{broadcast.port}: {error or type(error).__name__}") from error
    writer.close()
