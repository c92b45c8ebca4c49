"""From a `TrainStep` to training sequences: columns checked, stale tokens masked, advantages set. Torch-free."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from asearch.errors import TrainingError
from asearch.learning.advantages import GAE, estimators, whiten
from asearch.learning.objectives import Objective
from asearch.learning.staleness import segment_age, stale
from asearch.training.columns import columns_of
from asearch.training.settings import TrainerSettings
from schemas.local import TrainStep
from schemas.records import Segment

N_DECILES = 10


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """A segment up to its last trained token; shorter by what would not be learned from."""

    ids_T: npt.NDArray[np.int64]
    trained_N: npt.NDArray[np.int64]
    """Positions of the N trained tokens, increasing, all above 0."""
    behaviour_N: npt.NDArray[np.float32]
    episode: int
    group: int
    segment: str
    """`Segment.id`, unique in its episode."""


@dataclass(slots=True)
class Batch:
    """What one update consumes. Episodes are numbered over the batch, in order."""

    sequences: list[TrainingSequence] = field(default_factory=lambda: [])
    advantages: list[float] = field(default_factory=lambda: [])
    """By episode number."""
    by_token: bool = False
    """Whether a critic makes advantages of what `advantages` holds, the rewards."""
    always_teaches: bool = False
    """Whether tokens whose advantage is 0 are learned from, too."""
    staleness: Counter[int] = field(default_factory=lambda: Counter())
    """Trained tokens by staleness."""
    masked: list[int] = field(default_factory=lambda: [])
    """Tokens that the staleness rule took out, by episode number."""
    lengths: list[int] = field(default_factory=lambda: [])
    """Tokens of all segments, by episode number."""
    n_dead_lineage: int = 0
    """Trained tokens of abandoned steps."""

    @property
    def n_trained(self) -> int:
        """Loss tokens of the batch."""
        return sum(len(s.trained_N) for s in self.sequences)

    def has_signal(self, sequences: Sequence[TrainingSequence]) -> bool:
        """Whether anything can be learned from `sequences`."""
        return any(self.always_teaches or self.advantages[s.episode] != 0.0 for s in sequences)


def compose(command: TrainStep, objective: Objective, settings: TrainerSettings) -> Batch:
    """Read the segments of `command`. Raises TrainingError for anything that must not be learned from."""
    algorithm = settings.algorithm
    batch = Batch(
        by_token=objective.uses_advantages and algorithm.advantage == GAE,
        always_teaches=objective.uses_advantages and algorithm.always_teaches,
    )
    for number, group in enumerate(command.groups):
        for episode in group.episodes:
            if not math.isfinite(episode.reward):
                raise TrainingError(f"episode {episode.episode} has the reward {episode.reward}")
            batch.masked.append(0)
            batch.lengths.append(0)
            for segment in episode.segments:
                _add(batch, segment, number, command, objective.uses_advantages)
    batch.advantages = _advantages(command, batch, settings) if objective.uses_advantages else [1.0] * len(batch.lengths)
    return batch


def masked_by_decile(batch: Batch) -> list[int]:
    """Masked stale tokens by decile of episode length within the batch, shortest episodes first."""
    counts = [0] * N_DECILES
    order = sorted(range(len(batch.lengths)), key=lambda e: (batch.lengths[e], e))
    for rank, episode in enumerate(order):
        counts[rank * N_DECILES // len(order)] += batch.masked[episode]
    return counts


def _add(batch: Batch, segment: Segment, group: int, command: TrainStep, needs_behaviour: bool) -> None:
    episode = len(batch.lengths) - 1
    ids_T, mask_T, behaviour_T = columns_of(segment, needs_behaviour=needs_behaviour)
    batch.lengths[episode] += len(ids_T)
    if segment.versions or command.max_staleness is not None:
        mask_T = _without_stale(batch, segment, mask_T, command)
    trained_N = np.flatnonzero(mask_T)
    if len(trained_N):
        ids_T = ids_T[: int(trained_N[-1]) + 1]
        batch.sequences.append(TrainingSequence(ids_T, trained_N, behaviour_T[trained_N], episode, group, segment.id))


def _without_stale(batch: Batch, segment: Segment, mask_T: npt.NDArray[np.bool_], command: TrainStep) -> npt.NDArray[np.bool_]:
    age = segment_age(segment.versions, len(mask_T), command.lineage, command.step, command.claims)
    if not np.array_equal(age.staleness_T >= 0, mask_T):
        raise TrainingError(f"segment {segment.id}: its versions do not cover exactly the tokens that are trained")
    too_old_T = stale(age.staleness_T, command.max_staleness, command.rule)
    kept_T = mask_T & ~too_old_T
    batch.n_dead_lineage += int((age.dead_lineage_T & kept_T).sum())
    batch.masked[-1] += int(too_old_T.sum())
    values, counts = np.unique(age.staleness_T[kept_T], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        batch.staleness[value] += count
    return kept_T


def _advantages(command: TrainStep, batch: Batch, settings: TrainerSettings) -> list[float]:
    rewards = [[episode.reward for episode in group.episodes] for group in command.groups]
    algorithm = settings.algorithm
    advantages = estimators.get(algorithm.advantage)(rewards)
    if algorithm.normalise_advantages and not batch.by_token:
        tokens = Counter({e: 0 for e in range(len(batch.lengths))})
        for sequence in batch.sequences:
            tokens[sequence.episode] += len(sequence.trained_N)
        numbers = iter(range(len(batch.lengths)))
        advantages = whiten(advantages, [[tokens[next(numbers)] for _ in group] for group in rewards])
    flat = [a for group in advantages for a in group]
    if not all(math.isfinite(a) for a in flat):
        raise TrainingError(f"the advantage {algorithm.advantage} is not finite for some episode of this batch")
    return flat
