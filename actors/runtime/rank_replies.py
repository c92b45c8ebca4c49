"""One reply of the replies of all ranks to one command."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from asearch.errors import TrainingError
from schemas.local import (
    CheckpointCopied,
    CheckpointProgress,
    CheckpointRestored,
    RankFailed,
    Reply,
    StepDone,
    WeightsExported,
)
from schemas.records import WeightManifest

OF_ONE_RANK: dict[str, Callable[[Sequence[float]], float]] = {"tokens_per_s": min, "peak_memory_bytes": max}
"""Metrics of a step in which ranks may differ, and which of them counts."""


def merged(replies: Sequence[Reply]) -> Reply:
    """The reply of the group, of one reply of each rank in order. Raises TrainingError where they contradict one another."""
    kinds = {type(reply) for reply in replies}
    if kinds == {CheckpointProgress, RankFailed}:
        return _partly_written(replies)
    if len(kinds) != 1:
        said = ", ".join(f"rank {rank} {type(reply).__name__}" for rank, reply in enumerate(replies))
        raise TrainingError(f"the ranks answered one command differently: {said}")
    (kind,) = kinds
    merge = _MERGES.get(kind, _same)
    return merge(replies)


def _same(replies: Sequence[Reply]) -> Reply:
    for rank, reply in enumerate(replies):
        if reply != replies[0]:
            raise TrainingError(f"rank {rank} answered {_short(reply)}, rank 0 {_short(replies[0])}")
    return replies[0]


def _step_done(replies: Sequence[Reply]) -> StepDone:
    done = cast("Sequence[StepDone]", replies)
    first = done[0]
    for name in ("step", "skipped", "n_tokens_trained", "n_tokens_masked_stale", "staleness"):
        _agree(name, [getattr(each, name) for each in done])
    names = [set(each.metrics) for each in done]
    _agree("names of metrics", [sorted(each) for each in names])
    for name in first.metrics:
        if name not in OF_ONE_RANK:
            _agree(name, [_comparable(each.metrics[name]) for each in done])
    metrics = {
        name: OF_ONE_RANK[name]([each.metrics[name] for each in done]) if name in OF_ONE_RANK else value
        for name, value in first.metrics.items()
    }
    return msgspec.structs.replace(first, metrics=metrics, elapsed_ns=max(each.elapsed_ns for each in done))


def _exported(replies: Sequence[Reply]) -> WeightsExported:
    """Every rank names the shards that it wrote; one that wrote none, or all of them, may say so."""
    done = cast("Sequence[WeightsExported]", replies)
    _agree("path", [each.manifest.path for each in done])
    shards = {shard.name: shard for each in done for shard in each.manifest.shards}
    for each in done:
        for shard in each.manifest.shards:
            _agree(f"shard {shard.name}", [shard, shards[shard.name]])
    manifest = WeightManifest(path=done[0].manifest.path, shards=[shards[name] for name in sorted(shards)])
    return WeightsExported(manifest=manifest, elapsed_ns=max(each.elapsed_ns for each in done))


def _copied(replies: Sequence[Reply]) -> CheckpointCopied:
    done = cast("Sequence[CheckpointCopied]", replies)
    return CheckpointCopied(n_bytes=sum(each.n_bytes for each in done), elapsed_ns=max(each.elapsed_ns for each in done))


def _progress(replies: Sequence[Reply]) -> CheckpointProgress:
    """Whole when every rank is; each names its own files."""
    files: dict[str, tuple[int, str]] = {}
    for each in cast("Sequence[CheckpointProgress]", replies):
        if each.files is None:
            return CheckpointProgress(files=None)
        twice = files.keys() & each.files.keys()
        if twice:
            raise TrainingError(f"two ranks wrote the checkpoint file {min(twice)}")
        files |= each.files
    return CheckpointProgress(files=files)


def _partly_written(replies: Sequence[Reply]) -> Reply:
    """The failure of those that could not write, once the others have written: until then they take no other checkpoint."""
    if any(isinstance(reply, CheckpointProgress) and reply.files is None for reply in replies):
        return CheckpointProgress(files=None)
    return _failed([reply for reply in replies if isinstance(reply, RankFailed)])


def _restored(replies: Sequence[Reply]) -> CheckpointRestored:
    return CheckpointRestored(elapsed_ns=max(each.elapsed_ns for each in cast("Sequence[CheckpointRestored]", replies)))


def _failed(replies: Sequence[Reply]) -> RankFailed:
    """The failure that all ranks report: it is a disk's if one of them says so."""
    failures = cast("Sequence[RankFailed]", replies)
    cause = next((each for each in failures if each.storage), failures[0])
    return msgspec.structs.replace(cause, fatal=any(each.fatal for each in failures))


def _agree(what: str, values: Sequence[object]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise TrainingError(f"the ranks disagree on {what}: {values[0]} on rank 0, {value} on rank {rank}")


def _comparable(value: float) -> object:
    return "nan" if math.isnan(value) else value


def _short(reply: Reply) -> str:
    text = repr(reply)
    return text if len(text) < 200 else text[:200] + "…"


_MERGES: dict[type[Any], Callable[[Sequence[Reply]], Reply]] = {
    StepDone: _step_done,
    WeightsExported: _exported,
    CheckpointCopied: _copied,
    CheckpointProgress: _progress,
    CheckpointRestored: _restored,
    RankFailed: _failed,
}
