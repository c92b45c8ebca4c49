"""From OUTCOMES to batches: the fold that closes steps, and the trajectories of their episodes, fetched ahead of training."""

import asyncio
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from actors.runtime.bus import Bus
from asearch.errors import BlobMissingError, TrainingError
from asearch.learning.ledger import Ledger, LedgerRules, LedgerSnapshot, StepClosed
from asearch.training.columns import check_segment
from schemas.codec import MalformedError, decode_trajectory
from schemas.events import EpisodeGraded, Outcome
from schemas.local import TrainEpisode, TrainGroup
from schemas.records import Segment

MAX_STEPS_AHEAD = 64
MAX_FETCHES = 64


@dataclass(frozen=True)
class Batch:
    """A closed step and its trajectories, which are fetched while earlier steps train."""

    closed: StepClosed
    segments: dict[str, asyncio.Task[list[Segment]]] = field(default_factory=dict[str, "asyncio.Task[list[Segment]]"])

    async def groups(self, permute_seed: str | None = None) -> list[TrainGroup]:
        """What the step trains; with `permute_seed` the rewards are shuffled over the episodes."""
        segments = {name: await task for name, task in self.segments.items()}
        return train_groups(self.closed, segments, permute_seed)


def train_groups(closed: StepClosed, segments: Mapping[str, list[Segment]], permute_seed: str | None) -> list[TrainGroup]:
    """The groups of a closed step with the segments of each episode; with `permute_seed` the rewards are shuffled over them."""
    rewards = {outcome.episode: outcome.reward.value for group in closed.groups for outcome in group}
    if permute_seed is not None:
        shuffled = list(rewards.values())
        random.Random(permute_seed).shuffle(shuffled)
        rewards = dict(zip(rewards, shuffled, strict=True))
    return [
        TrainGroup(
            group=group[0].group,
            episodes=[
                TrainEpisode(episode=each.episode, reward=rewards[each.episode], segments=segments[each.episode])
                for each in group
            ],
        )
        for group in closed.groups
    ]


class BatchFeed:
    """Folds OUTCOMES from a checkpoint's watermark on. Batches depend on the order of OUTCOMES alone."""

    def __init__(self, bus: Bus, rules: LedgerRules, snapshot: LedgerSnapshot | None) -> None:
        self.batches: asyncio.Queue[Batch] = asyncio.Queue(maxsize=MAX_STEPS_AHEAD)
        self.n_blobs_missing = 0
        self._bus = bus
        self._rules = rules
        self._snapshot = snapshot
        self._log = structlog.get_logger()
        self._fetching: dict[str, asyncio.Task[list[Segment]]] = {}
        self._fetches = asyncio.Semaphore(MAX_FETCHES)

    async def run(self) -> None:
        """Fold until cancelled; trajectories of graded episodes are fetched as soon as they are known."""
        ledger = Ledger(self._rules, self._snapshot)
        begin = (self._snapshot.watermark if self._snapshot else 0) + 1
        async with aclosing(self._bus.read("outcomes", start_sequence=begin)) as reader:
            async for stored in reader:
                outcome = stored.event
                if not isinstance(outcome, Outcome) or outcome.purpose != "train":
                    continue
                if isinstance(outcome, EpisodeGraded) and not ledger.is_settled(stored.sequence):
                    self._prefetch(outcome)
                for effect in ledger.fold(stored.sequence, outcome):
                    if isinstance(effect, StepClosed):
                        await self.batches.put(self._batch_of(effect))
                    else:
                        self._forget(effect.refill_of)

    def _prefetch(self, outcome: EpisodeGraded) -> None:
        if outcome.episode not in self._fetching:
            self._fetching[outcome.episode] = asyncio.create_task(self._fetch(outcome), name=f"fetch {outcome.episode}")

    async def _fetch(self, outcome: EpisodeGraded) -> list[Segment]:
        """The segments of an episode; none where its trajectory is gone or of no use, so that one bad payload stops nobody."""
        if outcome.trajectory is None:
            return []
        try:
            async with self._fetches:
                found = decode_trajectory(await self._bus.get_blob(outcome.trajectory)).segments
            for segment in found:
                check_segment(segment)
            return found
        except (BlobMissingError, MalformedError, TrainingError) as error:
            self._log.error("an episode is trained without its tokens", episode=outcome.episode, error=str(error))
            self.n_blobs_missing += 1
            return []

    def _batch_of(self, closed: StepClosed) -> Batch:
        kept = [outcome.episode for group in closed.groups for outcome in group]
        segments = {episode: self._fetching.pop(episode) for episode in kept}
        for verdict in closed.verdicts:
            if verdict.reason is not None:
                self._forget(verdict.group)
        return Batch(closed, segments)

    def _forget(self, group: str) -> None:
        for episode in [name for name in self._fetching if name.rsplit("-", 1)[0] == group]:
            self._fetching.pop(episode).cancel()

    def close(self) -> None:
        """Fetch nothing more."""
        for task in self._fetching.values():
            task.cancel()
