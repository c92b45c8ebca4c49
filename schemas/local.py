"""The typed channel between the trainer actor and its rank processes: commands down, replies up, over a socket pair.

A frame is a 4-byte little-endian length and that many bytes of msgpack. Commands are imperative, replies past tense.
"""

import msgspec

from schemas.records import Record, Segment, TrainedEpisode, Version, WeightManifest

MAX_FRAME_BYTES = 1 << 30


class TrainEpisode(Record, frozen=True, kw_only=True):
    """One graded episode of a batch: its reward and its segments."""

    episode: str
    reward: float
    """`Reward.value`."""
    segments: list[Segment]


class TrainGroup(Record, frozen=True, kw_only=True):
    """Episodes of one task, compared with one another by the advantage estimator."""

    group: str
    episodes: list[TrainEpisode]


class Command(Record, tag_field="type", frozen=True, kw_only=True):
    """What a trainer actor tells a rank."""


class JoinGroup(Command, tag="join_group", frozen=True, kw_only=True):
    """Meet the other ranks at rank 0's store; first command of a rank that is one of several."""

    address: str
    port: int


class LoadModel(Command, tag="load_model", frozen=True, kw_only=True):
    """Build the model from an HF folder, with fresh optimizer state. `settings` is the `trainer` table of the recipe, as JSON."""

    model_dir: str
    """Folder in Hugging Face layout."""
    settings: bytes
    seed: int
    """Seed of dropout and of anything else that the rank draws."""


class TrainStep(Command, tag="train_step", frozen=True, kw_only=True):
    """One update from policy step `step` to `step + 1`, of tokens not older than the staleness rule allows.

    `max_staleness` is None for supervised batches. `rule` is `mask`, `discard` or `keep`. `claims` are the lineages that the
    model has had, each with the step from which it went on: they tell which tokens come from abandoned steps.
    """

    step: int
    lineage: int
    groups: list[TrainGroup]
    max_staleness: int | None = None
    rule: str = "mask"
    claims: tuple[Version, ...] = ()
    max_recorded_tokens: int = 0
    """Trained tokens whose log-probabilities the reply may hold at most; 0: it holds nothing by token or episode."""


class ExportWeights(Command, tag="export_weights", frozen=True, kw_only=True):
    """Write the current weights as an HF folder (safetensors, config, tokenizer files) at `path`, fsynced, renamed into place."""

    path: str
    version: Version
    fsync: bool = True
    """Whether the files are on disk before the reply; weights in shared memory need not be."""


class SaveCheckpoint(Command, tag="save_checkpoint", frozen=True, kw_only=True):
    """Copy weights, optimizer and RNG, answer, and write the copy below the existing folder `path` while commands go on.

    One at a time: `AwaitCheckpoint` ends it. The actor writes ledger and manifest and commits.
    """

    path: str


class AwaitCheckpoint(Command, tag="await_checkpoint", frozen=True, kw_only=True):
    """Wait until the files of the last `SaveCheckpoint` are on disk, for at most `timeout_s`; 0 only asks."""

    timeout_s: float = 0.0


class RestoreCheckpoint(Command, tag="restore_checkpoint", frozen=True, kw_only=True):
    """Load what `SaveCheckpoint` wrote; follows `LoadModel`."""

    path: str


class StopRank(Command, tag="stop_rank", frozen=True, kw_only=True):
    """Leave."""


class Reply(Record, tag_field="type", frozen=True, kw_only=True):
    """What a rank answers."""


class RankReady(Reply, tag="rank_ready", frozen=True, kw_only=True):
    """The process is up and has imported what it needs."""

    torch_version: str
    megatron_version: str
    device: str
    """As torch names it, e.g. `cpu`, `cuda:0`."""
    store_port: int = 0
    """Where rank 0 of several listens for the others; 0 for other ranks."""


class GroupJoined(Reply, tag="group_joined", frozen=True, kw_only=True):
    """`JoinGroup` is done: every rank of the group is there."""


class ModelLoaded(Reply, tag="model_loaded", frozen=True, kw_only=True):
    """`LoadModel` is done."""

    n_parameters: int
    """Trained numbers of the whole model, however many ranks hold it."""


class StepDone(Reply, tag="step_done", frozen=True, kw_only=True):
    """`TrainStep` is done. Metrics are plain numbers by name; a skipped step made no update."""

    step: int
    skipped: bool
    n_tokens_trained: int
    n_tokens_masked_stale: int
    """Tokens left out by the staleness rule."""
    staleness: dict[int, int]
    """Trained tokens by staleness."""
    metrics: dict[str, float]
    elapsed_ns: int
    episodes: list[TrainedEpisode] = msgspec.field(default_factory=list[TrainedEpisode])
    """What became of every episode, where `max_recorded_tokens` is above 0; token columns up to that bound."""


class WeightsExported(Reply, tag="weights_exported", frozen=True, kw_only=True):
    """`ExportWeights` is done and the folder is in place."""

    manifest: WeightManifest
    elapsed_ns: int


class CheckpointCopied(Reply, tag="checkpoint_copied", frozen=True, kw_only=True):
    """`SaveCheckpoint` has its copy: the model may be trained on."""

    n_bytes: int
    """Size of the copy."""
    elapsed_ns: int


class CheckpointProgress(Reply, tag="checkpoint_progress", frozen=True, kw_only=True):
    """How far `SaveCheckpoint` is: `files` is None while it writes, then every file with its size and xxh3-128 hash."""

    files: dict[str, tuple[int, str]] | None
    """(size in bytes, xxh3-128 hex) by path below the folder."""


class CheckpointRestored(Reply, tag="checkpoint_restored", frozen=True, kw_only=True):
    """`RestoreCheckpoint` is done."""

    elapsed_ns: int


class RankFailed(Reply, tag="rank_failed", frozen=True, kw_only=True):
    """A command failed. The rank goes on if `fatal` is false; where `storage` is true a disk was at fault."""

    message: str
    """One line."""
    traceback: str
    """The rank's traceback, for the log."""
    fatal: bool
    storage: bool = False


AnyCommand = JoinGroup | LoadModel | TrainStep | ExportWeights | SaveCheckpoint | AwaitCheckpoint | RestoreCheckpoint | StopRank
AnyReply = (
    RankReady
    | GroupJoined
    | ModelLoaded
    | StepDone
    | WeightsExported
    | CheckpointCopied
    | CheckpointProgress
    | CheckpointRestored
    | RankFailed
)

command_decoder = msgspec.msgpack.Decoder(AnyCommand)
reply_decoder = msgspec.msgpack.Decoder(AnyReply)
encoder = msgspec.msgpack.Encoder()
