"""What an update did, episode by episode and token by token, for whoever looks at an episode later."""

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from asearch.training.batch import Batch, TrainingSequence
from schemas.local import TrainStep
from schemas.records import Column, TrainedEpisode, TrainedSegment

Logprobs = Sequence[tuple[TrainingSequence, Tensor]]
"""Sequences with the log-probabilities (N,) of their trained tokens."""


def trained_episodes(command: TrainStep, batch: Batch, known: Logprobs) -> list[TrainedEpisode]:
    """Every episode of the batch with its advantage; nothing where `command` wants nothing.

    Token columns are of whole episodes in the order of the batch, up to the first that would exceed `max_recorded_tokens`.
    """
    if command.max_recorded_tokens == 0:
        return []
    by_episode: defaultdict[int, list[tuple[TrainingSequence, Tensor]]] = defaultdict(list)
    for sequence, logprobs_N in known:
        by_episode[sequence.episode].append((sequence, logprobs_N))
    names = [episode.episode for group in command.groups for episode in group.episodes]
    left = command.max_recorded_tokens
    trained: list[TrainedEpisode] = []
    for number, (name, advantage) in enumerate(zip(names, batch.advantages, strict=True)):
        parts = by_episode[number]
        n_tokens = sum(len(sequence.trained_N) for sequence, _ in parts)
        fits = n_tokens <= left
        left = left - n_tokens if fits else 0
        segments = [_segment(*part) for part in parts] if fits else []
        trained.append(TrainedEpisode(episode=name, advantage=advantage, segments=segments))
    return trained


def _segment(sequence: TrainingSequence, logprobs_N: Tensor) -> TrainedSegment:
    n = len(sequence.trained_N)
    positions = sequence.trained_N.astype("<u4").tobytes()
    logprobs = logprobs_N.float().cpu().numpy().astype("<f4").tobytes()
    return TrainedSegment(
        segment=sequence.segment,
        columns={
            "positions": Column(dtype="u4", shape=(n,), data=positions),
            "logprobs": Column(dtype="f4", shape=(n,), data=logprobs),
        },
    )
