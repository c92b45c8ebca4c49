"""Trains the policy: takes batches in the order of OUTCOMES, owns the rank process, writes the journal, publishes weights.

The claim is the fence: every append to POLICY is conditional on the model's last sequence, so a trainer that was replaced
can publish nothing.
"""

import asyncio
from pathlib import Path

from actors.runtime.actor import Actor, Context
from actors.runtime.batches import Batch, BatchFeed
from actors.runtime.checkpointing import Checkpointer, standing
from actors.runtime.policy_journal import PolicyJournal
from actors.runtime.publishing import Publisher
from actors.runtime.rank_commands import load_model, permute_seed, train_step
from actors.runtime.rank_group import start_ranks
from actors.runtime.ranks import Rank
from actors.runtime.transfer.broadcasting import Broadcaster
from actors.runtime.transfer.source import WeightSource
from actors.runtime.work_spans import step_span
from asearch.configuration.loading import recipe_hash
from asearch.errors import BusError, CheckpointError, TrainingError
from asearch.learning.ledger import LedgerSnapshot, StepClosed
from asearch.learning.rules import ledger_rules
from asearch.training.checkpoints import Manifest
from schemas.codec import encode
from schemas.events import GroupVerdict, StepTrained, TrainerClaimed
from schemas.local import (
    CheckpointRestored,
    ModelLoaded,
    RestoreCheckpoint,
    StepDone,
    TrainGroup,
)
from schemas.records import BlobRef, StepTokens, Version
from schemas.topology import step_tokens_key

MODEL = "policy"
STEP_TIMEOUT_S = 3600.0


class Trainer(Actor):
    """One per model."""

    kind = "trainer"

    def __init__(self, context: Context, model_dir: str, weights_dir: Path, rank: Rank | None = None) -> None:
        """With `rank` it takes the commands; else a rank process is started."""
        super().__init__(context)
        self._given_rank = rank
        self._rank: Rank | None = rank
        self._model_dir = model_dir
        self._weights_dir = weights_dir
        self._root = context.run_dir / "checkpoints"
        self._hash = recipe_hash(context.settings)
        self._journal = PolicyJournal(self.bus, MODEL, lambda why: self.become(self.state, why))
        self._feed: BatchFeed | None = None
        self._checkpointer: Checkpointer | None = None
        self._publisher: Publisher | None = None
        self._source: WeightSource | None = None
        self._broadcaster: Broadcaster | None = None
        self._step = 0
        self._snapshot: LedgerSnapshot | None = None
        self._step_under_way: asyncio.Task[None] | None = None
        self._n_tokens = 0
        self._n_tokens_not_recorded = 0
        self._train_s = 0.0
        self._idle_s = 0.0

    def gauges(self) -> dict[str, float]:
        """Step, lineage, steps trained again, tokens trained and not recorded, seconds by use, batches waiting, what failed."""
        return {
            "step": self._step,
            "lineage": self._journal.lineage,
            "n_steps_repeated": self._journal.n_repeated,
            "n_tokens": self._n_tokens,
            "n_tokens_not_recorded": self._n_tokens_not_recorded,
            "train_s": self._train_s,
            "idle_s": self._idle_s,
            "checkpoint_s": self._checkpointer.blocked_s if self._checkpointer else 0.0,
            "n_checkpoints_failed": self._checkpointer.n_failed if self._checkpointer else 0,
            "n_batches": self._feed.batches.qsize() if self._feed else 0,
            "n_blobs_missing": self._feed.n_blobs_missing if self._feed else 0,
        }

    # --- start: claim, restore, publish ---

    async def start(self) -> None:
        """Claim the model, restore the checkpoint that stands, publish its weights; only then read OUTCOMES."""
        await self._journal.read()
        found = await asyncio.to_thread(standing, self._root, self._journal)
        if found is not None and found[1].recipe_hash != self._hash:
            self.log.warning("the checkpoint is of other settings", path=str(found[0]))
        self._snapshot = found[1].ledger if found else None
        self._step = found[1].step if found else 0
        await self._refuse_a_gap()
        await self._claim(found[0] if found else None)
        await self.platform.fault("trainer.claimed")
        self.spawn(self._journal.watch(), "claims of others")
        rank = await self._load(found)
        checkpoint = self.settings.checkpoint
        self._checkpointer = Checkpointer(
            self.platform, self._journal, rank, self.spawn, self._root, MODEL, self._hash, checkpoint.every_steps
        )
        await self._checkpointer.resumed(self._step, stands=found is not None)
        await self._serve_weights()
        self._publisher = Publisher(
            self.platform,
            self._journal,
            rank,
            self._weights_dir,
            MODEL,
            checkpoint.keep_versions,
            self._source,
            self._broadcaster,
        )
        await self._publish(parent=None, changed=True)
        self._feed = BatchFeed(self.bus, ledger_rules(self.settings.run), self._snapshot)
        self.spawn(self._feed.run(), "outcomes")

    async def _refuse_a_gap(self) -> None:
        """Raises CheckpointError if outcomes that follow the checkpoint were purged: the batches would be others."""
        watermark = self._snapshot.watermark if self._snapshot else 0
        first = (await self.bus.stream_info("outcomes")).first_sequence
        if first > watermark + 1:
            raise CheckpointError(
                f"the newest checkpoint in {self._root} is of step {self._step} and needs the outcomes from {watermark + 1} on, "
                f"but those before {first} were purged, because newer checkpoints had been committed "
                f"({', '.join(map(str, self._journal.checkpoints)) or 'none'}): put these back, or begin a new run"
            )

    async def _claim(self, checkpoint: Path | None) -> None:
        lineage = self._journal.lineage + 1
        await self._journal.append(
            TrainerClaimed(
                id=f"claim-{MODEL}-{lineage}-{self.platform.new_id()}",
                at_ns=self.platform.now_ns(),
                model=MODEL,
                lineage=lineage,
                step=self._step,
                checkpoint=checkpoint.name if checkpoint else None,
                trainer=self.context.actor_id,
            )
        )

    async def _load(self, found: tuple[Path, Manifest] | None) -> Rank:
        """A rank with the model, and with the state of the checkpoint if there is one."""
        n = self.settings.trainer.world_size
        self.become("starting", f"{'the rank process' if n == 1 else f'{n} rank processes'} (imports megatron-core)")
        log_path = self.context.run_dir / "logs" / f"{self.context.actor_id}-rank.log"
        rank = self._given_rank
        if rank is None:
            rank = started = await start_ranks(self.platform, self.settings.trainer, log_path)
            # Also while none of them is asked anything: what starts again later is missed for longer.
            self.spawn(started.watch(), "rank processes")
        self._rank = rank
        await rank.ask(load_model(self.settings, self._model_dir), ModelLoaded, STEP_TIMEOUT_S)
        if found is not None:
            await rank.ask(RestoreCheckpoint(path=str(found[0])), CheckpointRestored, STEP_TIMEOUT_S)
        await self.platform.fault("trainer.loaded")
        return rank

    async def _serve_weights(self) -> None:
        """Start what engines pull from, where they do not read the published folder themselves."""
        if self.settings.engine.transfer == "shared":
            return
        run_dir, name = self.context.run_dir, self.context.actor_id
        self._source = WeightSource(self.platform, self._weights_dir, run_dir, name, self.settings.transfer)
        await self._source.start()
        self.spawn(self._source.watch(), "source of weights")
        if self.settings.engine.transfer == "broadcast":
            log_path = run_dir / "logs" / f"{name}-sender.log"
            self._broadcaster = Broadcaster(self.bus, self.platform, log_path, self.settings.transfer)
            await self._broadcaster.start()

    # --- training ---

    async def work(self) -> None:
        """Train the closed steps in order."""
        assert self._feed is not None  # noqa: S101
        while True:
            begun_s = self.platform.monotonic()
            if self._step >= self.settings.run.steps:
                await self.wait_stopping()
                return
            batch = await self._feed.batches.get()
            idle_s = self.platform.monotonic() - begun_s
            self._idle_s += idle_s
            # A step is one unit: being asked to stop half way must not leave the rank ahead of the journal. `drain` waits for it.
            self._step_under_way = self.spawn(self._train(batch, idle_s), f"step {batch.closed.step}")
            await asyncio.shield(self._step_under_way)
            self._train_s += self.platform.monotonic() - begun_s - idle_s

    async def _train(self, batch: Batch, idle_s: float) -> None:
        assert self._checkpointer is not None  # noqa: S101
        closed = batch.closed
        if closed.step != self._step:
            raise TrainingError(
                f"batch of step {closed.step} at policy step {self._step}: OUTCOMES were read twice or not at all"
            )
        begun_ns = self.platform.now_ns()
        groups = await batch.groups(permute_seed(self.settings, self._step))
        done = await self._update(groups) if groups else None
        await self.platform.fault("trainer.updated")
        tokens = await self._store_tokens(done) if done and done.episodes else None
        trained = self._trained(closed, done, idle_s, tokens)
        await self._journal.append(trained)
        if self.tracing.on:
            episodes = [outcome for group in closed.groups for outcome in group]
            self.tracing.emit(step_span(self.context.run, trained, episodes, begun_ns))
        await self.platform.fault("trainer.recorded")
        self._snapshot = closed.snapshot
        parent = self._version
        self._step += 1
        self._n_tokens += done.n_tokens_trained if done else 0
        is_last = self._step >= self.settings.run.steps
        if is_last:
            # Evaluation begins when the last version appears: that step must not be lost again.
            await self._checkpointer.commit(self._step, closed.snapshot)
            await self.platform.fault("trainer.last_checkpoint")
        await self._publish(parent, changed=done is not None and not done.skipped)
        if is_last:
            await self.platform.fault("trainer.done")
        elif self._checkpointer.is_due(self._step):
            await self._checkpointer.begin(self._step, closed.snapshot)

    @property
    def _version(self) -> Version:
        return Version(lineage=self._journal.lineage, step=self._step)

    async def _publish(self, parent: Version | None, changed: bool) -> None:
        assert self._publisher is not None  # noqa: S101
        version = self._version
        await self._publisher.publish(version, parent, changed)
        self.version = version

    async def _update(self, groups: list[TrainGroup]) -> StepDone:
        assert self._rank is not None  # noqa: S101
        command = train_step(self.settings, self._step, self._journal.lineage, self._journal.claims, groups)
        await self.platform.fault("trainer.step_asked")
        try:
            return await self._rank.ask(command, StepDone, STEP_TIMEOUT_S)
        except TrainingError:
            # Tokens of a successor's versions are newer than anything that this trainer may consume.
            await self._journal.check()
            raise

    async def _store_tokens(self, done: StepDone) -> BlobRef | None:
        """Store what the update did, before the event that refers to it; None where the broker does not take it.

        It is for people to look at: training goes on without it.
        """
        lineage = self._journal.lineage
        tokens = StepTokens(model=MODEL, lineage=lineage, step=done.step, episodes=done.episodes)
        try:
            ref = await self.bus.put_blob(step_tokens_key(MODEL, lineage, done.step), encode(tokens))
        except BusError as error:
            self._n_tokens_not_recorded += done.n_tokens_trained
            self.log.warning("the tokens of an update are not recorded", step=done.step, error=str(error))
            return None
        await self.platform.fault("trainer.tokens_stored")
        return ref

    def _trained(self, closed: StepClosed, done: StepDone | None, idle_s: float, tokens: BlobRef | None) -> StepTrained:
        return StepTrained(
            id=f"step-{MODEL}-{self._journal.lineage}-{closed.step}",
            at_ns=self.platform.now_ns(),
            model=MODEL,
            lineage=self._journal.lineage,
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
            tokens=tokens,
        )

    async def drain(self) -> None:
        """Finish the step under way, commit what was trained, stop the rank, delete the published files."""
        assert self._feed is not None and self._checkpointer is not None  # noqa: S101
        assert self._publisher is not None and self._rank is not None  # noqa: S101
        self._feed.close()
        try:
            if self._step_under_way is not None:
                await asyncio.shield(self._step_under_way)
            if self._snapshot is not None:
                await self._checkpointer.commit(self._step, self._snapshot)
        finally:
            await self._rank.stop()
            if self._broadcaster is not None:
                await self._broadcaster.stop()
            if self._source is not None:
                await self._source.stop()
        await asyncio.to_thread(self._publisher.remove_all)
