"""Trains the policy: folds OUTCOMES into batches, owns the rank processes, writes the model's journal, publishes weights.

The claim is the fence: every append to POLICY is conditional on the model's last sequence, so a trainer that was replaced
can publish nothing. Batches and verdicts depend on the order of OUTCOMES alone.
"""

import asyncio
import random
import shutil
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from actors.runtime.actor import Actor, Context
from actors.runtime.appends import append_past_malformed
from actors.runtime.ranks import Rank, RankProcess
from asearch.configuration.loading import recipe_hash
from asearch.errors import AsearchError, BlobMissingError, ConflictError, TrainingError
from asearch.learning.ledger import Ledger, LedgerSnapshot, StepClosed
from asearch.learning.rules import ledger_rules
from asearch.training import checkpoints
from schemas.codec import MalformedError, decode_trajectory
from schemas.events import (
    CheckpointCommitted,
    EpisodeGraded,
    Event,
    GroupVerdict,
    Outcome,
    PolicyPublished,
    StepTrained,
    TrainerClaimed,
)
from schemas.local import (
    CheckpointRestored,
    CheckpointSaved,
    ExportWeights,
    LoadModel,
    ModelLoaded,
    RestoreCheckpoint,
    SaveCheckpoint,
    StepDone,
    TrainEpisode,
    TrainGroup,
    TrainStep,
    WeightsExported,
)
from schemas.records import Segment, Version, WeightManifest

MODEL = "policy"
STEP_TIMEOUT_S = 3600.0
MAX_STEPS_AHEAD = 64
MAX_FETCHES = 64


class SecondTrainerError(AsearchError):
    """Another trainer has claimed the model."""


@dataclass(frozen=True)
class Batch:
    """A closed step and its trajectories, which are fetched while earlier steps train."""

    closed: StepClosed
    segments: dict[str, asyncio.Task[list[Segment]]] = field(default_factory=dict[str, "asyncio.Task[list[Segment]]"])


class Trainer(Actor):
    """One per model."""

    kind = "trainer"

    def __init__(self, context: Context, model_dir: str, weights_dir: Path, rank: Rank | None = None) -> None:
        """With `rank` it takes the commands; else a rank process is started."""
        super().__init__(context)
        self._given_rank = rank
        self._model_dir = model_dir
        self._weights_dir = weights_dir
        self._checkpoints = context.run_dir / "checkpoints"
        self._hash = recipe_hash(context.settings)
        self._batches: asyncio.Queue[Batch] = asyncio.Queue(maxsize=MAX_STEPS_AHEAD)
        self._fetching: dict[str, asyncio.Task[list[Segment]]] = {}
        self._fetches = asyncio.Semaphore(MAX_FETCHES)
        self._n_blobs_missing = 0
        self._last_policy = 0
        self._lineage = 1
        self._step = 0
        self._snapshot: LedgerSnapshot | None = None
        self._checkpointed: tuple[int, int] | None = None
        self._manifest: WeightManifest | None = None
        self._kept: list[Path] = []
        self._step_under_way: asyncio.Task[None] | None = None
        self._n_tokens = 0
        self._train_s = 0.0
        self._idle_s = 0.0

    def gauges(self) -> dict[str, float]:
        """Step, lineage, tokens trained, seconds spent training and waiting for batches, batches waiting."""
        return {
            "step": self._step,
            "lineage": self._lineage,
            "n_tokens": self._n_tokens,
            "train_s": self._train_s,
            "idle_s": self._idle_s,
            "n_batches": self._batches.qsize(),
            "n_blobs_missing": self._n_blobs_missing,
        }

    # --- start: claim, restore, publish ---

    async def start(self) -> None:
        """Claim the model, restore the newest checkpoint, publish its weights; only then read OUTCOMES."""
        found = await asyncio.to_thread(checkpoints.newest, self._checkpoints)
        if found is not None and found[1].recipe_hash != self._hash:
            self.log.warning("the checkpoint is of other settings", path=str(found[0]))
        self._snapshot = found[1].ledger if found else None
        self._step = found[1].step if found else 0
        await self._claim(found[1].lineage if found else 0, found[0] if found else None)
        self.become("starting", "the rank process (imports megatron-core)")
        log_path = self.context.run_dir / "logs" / f"{self.context.actor_id}-rank.log"
        self._rank = self._given_rank or await RankProcess.start(self.platform, log_path)
        settings = msgspec.json.encode(self.settings.trainer)
        command = LoadModel(model_dir=self._model_dir, settings=settings, seed=self.settings.seed)
        await self._rank.ask(command, ModelLoaded, STEP_TIMEOUT_S)
        if found is not None:
            await self._rank.ask(RestoreCheckpoint(path=str(found[0])), CheckpointRestored, STEP_TIMEOUT_S)
        await self._publish(parent=None)
        self.spawn(self._fold(), "outcomes")

    async def _claim(self, lineage: int, checkpoint: Path | None) -> None:
        async with aclosing(self.bus.read("policy", key=(MODEL,), follow=False)) as policy:
            async for stored in policy:
                self._last_policy = stored.sequence
                if isinstance(stored.event, TrainerClaimed):
                    lineage = max(lineage, stored.event.lineage)
        self._lineage = lineage + 1
        await self._append(
            TrainerClaimed(
                id=f"claim-{MODEL}-{self._lineage}-{self.platform.new_id()}",
                at_ns=self.platform.now_ns(),
                model=MODEL,
                lineage=self._lineage,
                step=self._step,
                checkpoint=checkpoint.name if checkpoint else None,
                trainer=self.context.actor_id,
            )
        )

    async def _append(self, event: Event) -> None:
        try:
            self._last_policy = await append_past_malformed(self.bus, event, MODEL, expected=self._last_policy)
        except ConflictError as error:
            raise SecondTrainerError("another trainer has claimed the model; this one stops and publishes nothing") from error

    # --- folding outcomes into batches ---

    async def _fold(self) -> None:
        """Fold OUTCOMES from the checkpoint's watermark; fetch trajectories of kept groups early."""
        ledger = Ledger(ledger_rules(self.settings.run), self._snapshot)
        begin = (self._snapshot.watermark if self._snapshot else 0) + 1
        async with aclosing(self.bus.read("outcomes", start_sequence=begin)) as reader:
            async for stored in reader:
                outcome = stored.event
                if not isinstance(outcome, Outcome) or outcome.purpose != "train":
                    continue
                if isinstance(outcome, EpisodeGraded) and not ledger.is_settled(stored.sequence):
                    self._prefetch(outcome)
                for effect in ledger.fold(stored.sequence, outcome):
                    if isinstance(effect, StepClosed):
                        await self._batches.put(self._batch_of(effect))
                    else:
                        self._forget(effect.refill_of)

    def _prefetch(self, outcome: EpisodeGraded) -> None:
        if outcome.episode not in self._fetching:
            self._fetching[outcome.episode] = asyncio.create_task(self._fetch(outcome), name=f"fetch {outcome.episode}")

    async def _fetch(self, outcome: EpisodeGraded) -> list[Segment]:
        """The segments of an episode; none where its trajectory is gone, so that one lost payload stops nobody."""
        if outcome.trajectory is None:
            return []
        try:
            async with self._fetches:
                return decode_trajectory(await self.bus.get_blob(outcome.trajectory)).segments
        except (BlobMissingError, MalformedError) as error:
            self.log.error("an episode is trained without its tokens", episode=outcome.episode, error=str(error))
            self._n_blobs_missing += 1
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

    # --- training ---

    async def work(self) -> None:
        """Train the closed steps in order."""
        while True:
            begun_s = self.platform.monotonic()
            if self._step >= self.settings.run.steps:
                await self.wait_stopping()
                return
            batch = await self._batches.get()
            idle_s = self.platform.monotonic() - begun_s
            self._idle_s += idle_s
            # A step is one unit: cancelling it half way would leave the rank ahead of the journal.
            self._step_under_way = asyncio.create_task(self._train(batch, idle_s), name=f"step {batch.closed.step}")
            await asyncio.shield(self._step_under_way)
            self._train_s += self.platform.monotonic() - begun_s - idle_s

    async def _train(self, batch: Batch, idle_s: float) -> None:
        closed = batch.closed
        if closed.step != self._step:
            raise TrainingError(
                f"batch of step {closed.step} at policy step {self._step}: OUTCOMES were read twice or not at all"
            )
        groups = await self._groups(batch)
        done = await self._update(groups) if groups else None
        await self.platform.fault("trainer.updated")
        await self._append(self._trained(closed, done, idle_s))
        self._snapshot = closed.snapshot
        parent = Version(lineage=self._lineage, step=self._step)
        self._step += 1
        self._n_tokens += done.n_tokens_trained if done else 0
        is_last = self._step >= self.settings.run.steps
        if is_last:
            # Evaluation begins when the last version appears: that step must not be lost again.
            await self._checkpoint()
        await self._publish(parent, changed=done is not None and not done.skipped)
        if not is_last and self._step % self.settings.checkpoint.every_steps == 0:
            await self._checkpoint()

    async def _groups(self, batch: Batch) -> list[TrainGroup]:
        rewards = {outcome.episode: outcome.reward.value for group in batch.closed.groups for outcome in group}
        if self.settings.rewards.permute:
            shuffled = list(rewards.values())
            random.Random(f"{self.settings.seed}-{self._step}").shuffle(shuffled)
            rewards = dict(zip(rewards, shuffled, strict=True))
        return [
            TrainGroup(
                group=group[0].group,
                episodes=[
                    TrainEpisode(
                        episode=outcome.episode,
                        reward=rewards[outcome.episode],
                        segments=await batch.segments[outcome.episode],
                    )
                    for outcome in group
                ],
            )
            for group in batch.closed.groups
        ]

    async def _update(self, groups: list[TrainGroup]) -> StepDone:
        run = self.settings.run
        command = TrainStep(step=self._step, lineage=self._lineage, groups=groups, max_staleness=run.eta, rule=run.rule)
        return await self._rank.ask(command, StepDone, STEP_TIMEOUT_S)

    def _trained(self, closed: StepClosed, done: StepDone | None, idle_s: float) -> StepTrained:
        return StepTrained(
            id=f"step-{MODEL}-{self._lineage}-{closed.step}",
            at_ns=self.platform.now_ns(),
            model=MODEL,
            lineage=self._lineage,
            step=closed.step,
            verdicts=[
                GroupVerdict(group=verdict.group, episodes=len(verdict.sequences), reason=verdict.reason)
                for verdict in closed.verdicts
            ],
            staleness=done.staleness if done else {},
            n_tokens_trained=done.n_tokens_trained if done else 0,
            n_tokens_masked_stale=done.n_tokens_masked_stale if done else 0,
            n_tokens_discarded=sum(verdict.n_tokens for verdict in closed.verdicts if verdict.reason is not None),
            empty=done is None,
            metrics=done.metrics if done else {},
            elapsed_ns=done.elapsed_ns if done else 0,
            idle_ns=int(idle_s * 1e9),
        )

    # --- publishing and checkpoints ---

    async def _publish(self, parent: Version | None, changed: bool = True) -> None:
        """Announce the weights of the current step; a step that changed none announces the same files again."""
        version = Version(lineage=self._lineage, step=self._step)
        if changed or self._manifest is None:
            path = self._weights_dir / f"v{version}"
            command = ExportWeights(path=str(path), version=version, fsync=False)
            exported = await self._rank.ask(command, WeightsExported, STEP_TIMEOUT_S)
            self._manifest = exported.manifest
            self._kept.append(path)
            while len(self._kept) > self.settings.checkpoint.keep_versions:
                shutil.rmtree(self._kept.pop(0), ignore_errors=True)
        await self.platform.fault("trainer.exported")
        await self._append(
            PolicyPublished(
                id=f"published-{MODEL}-{version}",
                at_ns=self.platform.now_ns(),
                model=MODEL,
                version=version,
                parent=parent,
                manifest=self._manifest,
            )
        )
        self.version = version

    async def _checkpoint(self) -> None:
        """Commit weights, optimizer, RNG and the ledger as of the last trained step."""
        snapshot = self._snapshot
        if snapshot is None or self._checkpointed == (self._lineage, self._step):
            return
        aside = checkpoints.begin(self._checkpoints, self._lineage, self._step)
        saved = await self._rank.ask(SaveCheckpoint(path=str(aside)), CheckpointSaved, STEP_TIMEOUT_S)
        manifest = checkpoints.Manifest(
            lineage=self._lineage,
            step=self._step,
            recipe_hash=self._hash,
            ledger=snapshot,
            files={name: checkpoints.FileEntry(size, digest) for name, (size, digest) in saved.files.items()},
        )
        await self.platform.fault("trainer.checkpoint_written")
        final = await asyncio.to_thread(checkpoints.commit, aside, manifest)
        self._checkpointed = (self._lineage, self._step)
        await self._append(
            CheckpointCommitted(
                id=f"checkpoint-{MODEL}-{self._lineage}-{self._step}",
                at_ns=self.platform.now_ns(),
                model=MODEL,
                lineage=self._lineage,
                step=self._step,
                path=str(final),
                watermark=snapshot.watermark,
                counted=snapshot.counted,
            )
        )

    async def drain(self) -> None:
        """Finish the step under way, commit what was trained, stop the rank, delete the published files."""
        if self._step_under_way is not None:
            await asyncio.shield(self._step_under_way)
        for task in self._fetching.values():
            task.cancel()
        await self._checkpoint()
        await self._rank.stop()
        shutil.rmtree(self._weights_dir, ignore_errors=True)
