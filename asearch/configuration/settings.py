"""Every setting of a run, with its default. A recipe is a TOML file with these tables; unknown keys are refused."""

from typing import Literal

import msgspec

from asearch.agents.settings import AgentSettings
from asearch.configuration.auxiliary import AuxiliarySettings
from asearch.configuration.engine import EngineSettings
from asearch.configuration.transfer import TransferSettings
from asearch.rewards.answer import AUG_WEIGHT
from asearch.rewards.grader import RewardConfig
from asearch.tools.latency import LatencySpec
from asearch.tools.limits import ClientLimits
from asearch.training.settings import TrainerSettings


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a recipe."""


class RunSettings(Table, frozen=True, kw_only=True):
    """How long to train, on how many episodes a step, and how far ahead of the trainer."""

    steps: int = 40
    """Policy updates."""
    groups_per_step: int = 16
    group_size: int = 8
    eta: int = 4
    """Largest staleness at which a token is trained; 0 is the synchronous mode, 1 one step off."""
    rule: str = "mask"
    """What is done with tokens older than eta: mask, discard or keep."""
    max_refills: int = 1
    """How often the group of a slot may be replaced when it carries no signal or is incomplete."""
    min_graded: int | None = None
    """Graded members that a group needs; unset means all."""
    equal_rewards: Literal["discard", "keep"] | None = None
    """What becomes of a group whose rewards are all equal: discarded and replaced, as in DAPO's dynamic sampling, or trained.

    Unset, a new run takes what its objective needs: `keep` where such a group has advantages, which is under `gae` and where
    advantages are normalised over the batch, else `discard`.
    """
    max_empty_steps: int = 20
    """Empty steps in a row after which the run ends with an error."""
    max_groups_in_flight: int = 96
    max_episodes_per_driver: int = 512
    episode_deadline_s: float = 600.0
    """Wall clock of one episode; at 80 % it is asked for its answer."""
    lease_s: float = 30.0
    """How long an episode may be in no driver's lease before it is asked for again."""


class WorldSettings(Table, frozen=True, kw_only=True):
    """The generated wiki that stands in for a corpus where none is given. `seed` unset means the run's seed."""

    entities: int = 64
    relations: int = 6
    seed: int | None = None


class DataSettings(Table, frozen=True, kw_only=True):
    """Files of the user's own; unset means the generated world."""

    corpus: str | None = None
    pages: str | None = None
    tasks: str | None = None
    eval_tasks: str | None = None
    eval_fraction: float = 0.2
    max_question_chars: int = 4000


class ModelSettings(Table, frozen=True, kw_only=True):
    """The policy: an HF folder, or a small fresh model of this shape."""

    path: str | None = None
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 32
    ffn: int = 128
    rope_theta: float = 1000.0
    vocabulary: int = 4096
    """Upper bound; the vocabulary holds bytes and the words of corpus and questions."""


class WarmstartSettings(Table, frozen=True, kw_only=True):
    """Supervised steps on scripted episodes before reinforcement learning; 0 steps turn it off."""

    steps: int = 600
    tokens_per_step: int = 4096
    demonstrations: int = 12_000
    """Distinct scripted episodes; steps go through them again and again."""
    complete_demonstrations: int = 0
    """The first so many follow every chain to its end; only the others stop early."""
    stop_early: float = 0.8
    """How often a demonstration answers although its chain is incomplete: what reinforcement learning has to unlearn."""
    p_stop: float = 0.4
    """Share of demonstrations that do answer early; of the other decisions only so many are trained as make `stop_early`."""
    cache: bool = True
    """Whether a warm start that an earlier run made from the same settings and inputs is taken."""
    trainer: TrainerSettings = TrainerSettings(objective="sft")


class RewardSettings(Table, frozen=True, kw_only=True):
    """How an episode is judged."""

    name: str = "f1_format"
    normalise: str | None = None
    """Normalisation variant; unset means the one of the reward's source."""
    aug_weight: float = AUG_WEIGHT
    overlong_tokens: int = 0
    """Generated tokens of an episode at which its reward is lowered by 1 (DAPO's L_max); 0 is no punishment of length.

    It is part of the reward: episodes that differ in nothing else are no group of equal rewards.
    """
    overlong_cache_tokens: int = 0
    """Over how many tokens before that the punishment grows from 0 (DAPO's L_cache)."""
    permute: bool = False
    """Shuffle the rewards of each batch: a control that must learn nothing."""

    def config(self) -> RewardConfig:
        """What a grader is given. Raises ConfigError for an unknown name or impossible numbers."""
        return RewardConfig(
            name=self.name,
            normalise=self.normalise,
            aug_weight=self.aug_weight,
            overlong_tokens=self.overlong_tokens,
            overlong_cache_tokens=self.overlong_cache_tokens,
        )


class ToolSettings(Table, frozen=True, kw_only=True):
    """How tools are called, and the latency that benchmarks add to them."""

    deadline_s: float = 60.0
    """For one call, with its retries."""
    concurrency: int = 256
    limits: ClientLimits = ClientLimits()
    latency: LatencySpec = LatencySpec()


class ActorSettings(Table, frozen=True, kw_only=True):
    """How many processes of the kinds that share one queue; `engine.count` says how many engines."""

    drivers: int = 1
    tools: int = 1
    graders: int = 1


class EvaluationSettings(Table, frozen=True, kw_only=True):
    """Greedy evaluation on held-out questions, before and after training."""

    before: bool = True
    after: bool = True
    questions: int = 300


class CheckpointSettings(Table, frozen=True, kw_only=True):
    """How often the trainer's state is made durable; two checkpoints are kept."""

    every_steps: int = 10
    weights_dir: str | None = None
    """Where published weights lie; unset means shared memory if there is room, else the run's folder."""
    keep_versions: int = 3


class ArchiveSettings(Table, frozen=True, kw_only=True):
    """What is made of a run's records at its end. Nothing of it changes what is trained."""

    parquet: bool = True
    """Whether the recorder has `asearch archive` write the run's Parquet files."""


class ViewerSettings(Table, frozen=True, kw_only=True):
    """The page of a run, on loopback. Nothing of it changes what is trained."""

    enabled: bool = True
    port: int = 8440
    """Taken if it is free, else any free one; 0 takes a free one."""


class Settings(Table, frozen=True, kw_only=True):
    """A whole run."""

    recipe: str = "toy"
    seed: int = 0
    run: RunSettings = RunSettings()
    world: WorldSettings = WorldSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    warmstart: WarmstartSettings = WarmstartSettings()
    agent: AgentSettings = AgentSettings()
    tools: ToolSettings = ToolSettings()
    rewards: RewardSettings = RewardSettings()
    trainer: TrainerSettings = TrainerSettings()
    engine: EngineSettings = EngineSettings()
    auxiliary: dict[str, AuxiliarySettings] = {}
    """Auxiliary models by name: judges, readers, user simulators."""
    transfer: TransferSettings = TransferSettings()
    actors: ActorSettings = ActorSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    viewer: ViewerSettings = ViewerSettings()
    archive: ArchiveSettings = ArchiveSettings()
