"""What a server tells of the weights that it has received, and what it ought to tell."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from asearch.errors import ChecksumError
from asearch.weights.sglang import HeldWeights
from schemas.records import WeightManifest


class TellingServer(Protocol):
    """A server that tells checksums of its weights."""

    async def received_checksums(self) -> dict[str, str]:
        """xxh3-128 by tensor of what was received, of an embedded server. Raises EngineError."""
        ...

    async def held_checksums(self) -> dict[str, str]:
        """SGLang's checksum of each parameter that it holds. Raises EngineError."""
        ...


class Verification(Protocol):
    """One way to compare."""

    async def expected(self, manifest: WeightManifest) -> dict[str, str]:
        """What a server that has the announced weights tells. Raises TransferError."""
        ...

    async def told(self, server: TellingServer) -> dict[str, str]:
        """What it tells. Raises EngineError."""
        ...


class ByTensor:
    """The announced checksums, of the embedded server's own tensors."""

    async def expected(self, manifest: WeightManifest) -> dict[str, str]:
        """What was announced."""
        return _announced(manifest)

    async def told(self, server: TellingServer) -> dict[str, str]:
        """Of what was received."""
        return await server.received_checksums()


class ByParameter:
    """SGLang's checksums. The source computes them from bytes that must be the announced ones."""

    def __init__(self, held: Callable[[WeightManifest], Awaitable[HeldWeights]]) -> None:
        """`held` asks the source."""
        self._held = held

    async def expected(self, manifest: WeightManifest) -> dict[str, str]:
        """What the source has computed. Raises ChecksumError where it was not of the announced bytes."""
        held = await self._held(manifest)
        refuse_others(held.tensors, _announced(manifest), "tensors at the source are not those that were announced")
        return held.parameters

    async def told(self, server: TellingServer) -> dict[str, str]:
        """Of what the server holds."""
        return await server.held_checksums()


def refuse_others(told: dict[str, str], expected: dict[str, str], what: str) -> None:
    """Raises ChecksumError unless both are the same, also in their names."""
    wrong = sorted(name for name in told.keys() | expected.keys() if told.get(name) != expected.get(name))
    if wrong:
        raise ChecksumError(f"{len(wrong)} {what}, the first is {wrong[0]}")


def _announced(manifest: WeightManifest) -> dict[str, str]:
    return {name: value for shard in manifest.shards for name, value in shard.checksums.items()}
