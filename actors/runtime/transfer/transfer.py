"""What an engine needs of a way for weights to travel, and the ways there are."""

from pathlib import Path
from typing import Protocol

from asearch.errors import EngineError
from schemas.events import PolicyPublished


class WeightReceiver(Protocol):
    """What a transfer needs of an inference server."""

    async def update_weights(self, path: str, version: str) -> None:
        """Load the weights at `path` and name them `version`. Raises EngineError."""
        ...


class SpoiledServerError(EngineError):
    """The server's weights are neither the old nor the new ones: it must not serve."""


class LostVersionError(SpoiledServerError):
    """The new ones are not to be had any more; a newer version that is loaded whole makes the server sound again."""


class Transfer(Protocol):
    """Brings announced versions to one engine. One version at a time."""

    async def prepare(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Get the weights to this host and check them, beside serving.

        Raises WeightsGoneError if the version is not to be had any more, TransferError if it cannot be had now, ChecksumError
        if it is not what was announced.
        """
        ...

    async def load(self, server: WeightReceiver, published: PolicyPublished) -> None:
        """Give what was prepared to the server, whose generation is paused.

        Raises EngineError; the server then has what it had, unless it is a SpoiledServerError (LostVersionError if the
        version was deleted meanwhile).
        """
        ...

    async def close(self) -> None:
        """Stop what is under way; delete what lies on this host for this engine alone."""
        ...

    def gauges(self) -> dict[str, float]:
        """What it has moved, for the heartbeat."""
        ...


def pulled_folder(weights_dir: Path, actor_id: str) -> Path:
    """Where an engine keeps what it has pulled: beside what a trainer on the same host would publish, under its own name."""
    return weights_dir / f"pulled-{actor_id}"
