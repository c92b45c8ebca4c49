"""A rank without a model, in the trainer's process: its weights are a digest of the batches that it was given, in order."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from asearch.errors import TrainingError
from schemas.local import (
    AwaitCheckpoint,
    CheckpointCopied,
    CheckpointProgress,
    CheckpointRestored,
    Command,
    ExportWeights,
    LoadModel,
    ModelLoaded,
    Reply,
    RestoreCheckpoint,
    SaveCheckpoint,
    StepDone,
    TrainStep,
    WeightsExported,
)
from schemas.records import ShardFile, WeightManifest
from tests.sim.parts import trained_episodes

FILE = "model.bin"


class LightRank:
    """Every step takes `step_s` and makes the digest of the one before and of its batch."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._weights = b""
        self._written: dict[str, tuple[int, str]] | None = None

    async def ask(self, command: Command, expected: type[Any], timeout_s: float) -> Any:
        """Carry a command out."""
        reply = await self._reply(command)
        assert isinstance(reply, expected)
        return reply

    async def stop(self, grace_s: float = 5.0) -> None:
        """Nothing is left."""

    async def _reply(self, command: Command) -> Reply:
        match command:
            case LoadModel():
                self._weights = b"fresh"
                return ModelLoaded(n_parameters=0)
            case TrainStep():
                await asyncio.sleep(self._step_s)
                return self._trained(command)
            case ExportWeights():
                folder = Path(command.path)
                folder.mkdir(parents=True)
                shard = ShardFile(name=FILE, size_bytes=len(self._weights), checksums={"w": self._write(folder)[1]})
                return WeightsExported(manifest=WeightManifest(path=command.path, shards=[shard]), elapsed_ns=0)
            case SaveCheckpoint():
                self._written = {FILE: self._write(Path(command.path))}
                return CheckpointCopied(n_bytes=len(self._weights), elapsed_ns=0)
            case AwaitCheckpoint():
                return CheckpointProgress(files=self._written)
            case RestoreCheckpoint():
                self._weights = (Path(command.path) / FILE).read_bytes()
                return CheckpointRestored(elapsed_ns=0)
            case _:
                raise TrainingError(f"no such command: {type(command).__name__}")

    def _write(self, folder: Path) -> tuple[int, str]:
        (folder / FILE).write_bytes(self._weights)
        return len(self._weights), xxhash.xxh3_128_hexdigest(self._weights)

    def _trained(self, command: TrainStep) -> StepDone:
        batch = msgspec.json.encode((command.step, command.groups))
        self._weights = hashlib.blake2b(self._weights + batch, digest_size=16).digest()
        n = sum(
            sum(segment.columns["mask"].data) for group in command.groups for each in group.episodes for segment in each.segments
        )
        return StepDone(
            step=command.step,
            skipped=False,
            n_tokens_trained=n,
            n_tokens_masked_stale=0,
            staleness={0: n},
            metrics={},
            elapsed_ns=0,
            episodes=trained_episodes(command),
        )
