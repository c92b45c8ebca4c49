"""The events: facts in the past tense, appended to a stream under a subject that ends with their key.

Every event is a tagged msgspec struct, encoded as msgpack. `id` is deterministic: the same fact has the same id whoever
retries it. `at_ns` is the writer's clock in nanoseconds since the epoch; it is for reading, never for decisions.
Fields are only ever added, with a default; a field is never renamed, retyped or given a new meaning.
"""

import msgspec

from schemas.records import (
    AnswerKey,
    BlobRef,
    Column,
    Interval,
    Reward,
    Task,
    ToolResult,
    ToolUse,
    Trajectory,
    Version,
    VersionRun,
    WeightManifest,
)


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """A fact. Unknown fields are skipped; an unknown `type` is refused."""

    id: str
    at_ns: int = 0


# --- PLAN: written by the scheduler alone -----------------------------------------------------------------------------


class RunStarted(Event, tag="run_started", frozen=True, kw_only=True):
    """A run began: what it trains, with the whole configuration as JSON."""

    run: str
    recipe: str
    recipe_hash: str
    seed: int
    config: bytes
    code_version: str = ""


class GroupAdmitted(Event, tag="group_admitted", frozen=True, kw_only=True):
    """`members` episodes of one task may begin. `slot` numbers the groups of a purpose; a refill takes its slot over.

    `progress` is the newest policy step at admission. `purpose` is `train`, `eval` or `synthesis`; `label` tells several
    evaluations apart.
    """

    group: str
    purpose: str
    slot: int
    task: Task
    members: int
    seeds: list[int]
    progress: int
    refill: int = 0
    refill_of: str | None = None
    label: str = ""


class EpisodeRequested(Event, tag="episode_requested", frozen=True, kw_only=True):
    """An episode was asked for. `model` is a policy name; `version` pins it, None means the newest.

    `attempt` grows when the scheduler asks again for an episode that no driver holds.
    """

    episode: str
    group: str
    member: int
    members: int
    slot: int
    purpose: str
    task: Task
    seed: int
    progress: int
    recipe_hash: str
    attempt: int = 0
    refill: int = 0
    model: str = "policy"
    version: Version | None = None
    parent_episode: str | None = None
    label: str = ""


class AnswerKeyStored(Event, tag="answer_key_stored", frozen=True, kw_only=True):
    """The references of a task, for graders, declared tools and the viewer."""

    key: AnswerKey


class RunEnded(Event, tag="run_ended", frozen=True, kw_only=True):
    """The run is over; `reason` is `completed`, `stopped` or the name of an error."""

    run: str
    reason: str
    message: str = ""


# --- TRACE: written by the driver that holds the episode --------------------------------------------------------------


class EpisodeTaken(Event, tag="episode_taken", frozen=True, kw_only=True):
    """A driver holds the episode from here on."""

    episode: str
    driver: str
    attempt: int
    request: EpisodeRequested


class TokensGenerated(Event, tag="tokens_generated", frozen=True, kw_only=True):
    """Tokens of one generation from `offset` on, at most 2,000. Columns `ids` u4 and `logprobs` f4, both (n,).

    `versions` counts from `offset`. `finish` is None while more tokens follow, else `stop`, `length` or `abort`.
    """

    episode: str
    request: str
    turn: int
    offset: int
    columns: dict[str, Column]
    versions: list[VersionRun]
    finish: str | None = None
    engine: str = ""
    elapsed_ns: int = 0


class ToolRequested(Event, tag="tool_requested", frozen=True, kw_only=True):
    """A tool call was asked for; the tool actor sends its result to the core subject `reply_to`."""

    episode: str
    call: str
    turn: int
    tool: str
    argument: str
    task: str
    member: int
    reply_to: str
    seed: int = 0


class ToolReturned(Event, tag="tool_returned", frozen=True, kw_only=True):
    """The result of a tool call, as the policy will see it; large results lie in BLOBS."""

    episode: str
    call: str
    turn: int
    result: ToolResult | None = None
    blob: BlobRef | None = None


class DeadlineNeared(Event, tag="deadline_neared", frozen=True, kw_only=True):
    """The episode's wall clock runs out: its next generation is the forced answer."""

    episode: str


class EpisodeFinished(Event, tag="episode_finished", frozen=True, kw_only=True):
    """The agent is done; the episode waits for its outcome.

    `generated` holds the text of every generation: with the tool log and the answer key all that a grader reads.
    """

    episode: str
    group: str
    member: int
    members: int
    slot: int
    purpose: str
    task: str
    status: str
    answer: str | None
    generated: list[str]
    tool_log: list[ToolUse]
    trajectory: BlobRef | None
    n_turns: int
    n_tokens_generated: int
    refill: int = 0
    label: str = ""
    elapsed_ns: int = 0
    oldest: Version | None = None
    generated_blob: BlobRef | None = None
    """Where `generated` lies instead, when it is large: a msgpack list of texts."""
    meta: dict[str, str] = {}


# --- OUTCOMES: exactly one per episode, the first wins ----------------------------------------------------------------


class Outcome(Event, frozen=True, kw_only=True):
    """How an episode ended. Everything that group closing needs is here, so the ledger reads this stream alone."""

    episode: str
    group: str
    member: int
    members: int
    slot: int
    purpose: str
    task: str
    refill: int = 0
    label: str = ""


class EpisodeGraded(Outcome, tag="episode_graded", frozen=True, kw_only=True):
    """The episode was graded and its trajectory may be trained."""

    reward: Reward
    trajectory: BlobRef | None
    status: str
    answer: str | None
    n_turns: int
    n_tokens_generated: int
    n_searches: int
    n_reads: int
    oldest: Version | None = None
    elapsed_ns: int = 0
    meta: dict[str, str] = {}
    correct: bool = False


class EpisodeDropped(Outcome, tag="episode_dropped", frozen=True, kw_only=True):
    """The episode ended before grading for a reason outside the policy: an outage, a deadline, the end of the run."""

    reason: str
    message: str = ""


class EpisodeDead(Outcome, tag="episode_dead", frozen=True, kw_only=True):
    """The episode cannot be finished by anybody: `no_progress`, `blob_missing`, `poison`."""

    reason: str
    message: str = ""


# --- POLICY: the trainer's journal ------------------------------------------------------------------------------------


class TrainerClaimed(Event, tag="trainer_claimed", frozen=True, kw_only=True):
    """A trainer took the model over. Every later append of an older claim is refused by the broker."""

    model: str
    lineage: int
    step: int
    checkpoint: str | None
    trainer: str


class GroupVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a group at the step that closed over it: `counted`, or discarded for `reason`."""

    group: str
    episodes: int
    reason: str | None = None


class StepTrained(Event, tag="step_trained", frozen=True, kw_only=True):
    """The policy went from `step` to `step + 1`. `empty` steps had no group to train on and changed no weight."""

    model: str
    lineage: int
    step: int
    verdicts: list[GroupVerdict]
    staleness: dict[int, int]
    """Trained tokens by staleness."""
    n_tokens_trained: int
    n_tokens_masked_stale: int
    n_tokens_discarded: int
    empty: bool
    metrics: dict[str, float]
    elapsed_ns: int = 0
    idle_ns: int = 0


class PolicyPublished(Event, tag="policy_published", frozen=True, kw_only=True):
    """The weights of a version can be loaded from the manifest's folder."""

    model: str
    version: Version
    parent: Version | None
    manifest: WeightManifest


class CheckpointCommitted(Event, tag="checkpoint_committed", frozen=True, kw_only=True):
    """A checkpoint is durable on disk. `watermark` is the last OUTCOMES sequence that it accounts for."""

    model: str
    lineage: int
    step: int
    path: str
    watermark: int
    counted: list[Interval]


# --- BLOBS and DEAD ---------------------------------------------------------------------------------------------------


class BlobStored(Event, tag="blob_stored", frozen=True, kw_only=True):
    """One chunk of a payload of `n_chunks` chunks; `hash` is the xxh3-128 of the whole."""

    episode: str
    hash: str
    index: int
    n_chunks: int
    data: bytes


class EventRefused(Event, tag="event_refused", frozen=True, kw_only=True):
    """Bytes that could not be handled, kept with the reason and where they came from."""

    stream: str
    subject: str
    sequence: int
    actor: str
    reason: str
    data: bytes


AnyEvent = (
    RunStarted
    | GroupAdmitted
    | EpisodeRequested
    | AnswerKeyStored
    | RunEnded
    | EpisodeTaken
    | TokensGenerated
    | ToolRequested
    | ToolReturned
    | DeadlineNeared
    | EpisodeFinished
    | EpisodeGraded
    | EpisodeDropped
    | EpisodeDead
    | TrainerClaimed
    | StepTrained
    | PolicyPublished
    | CheckpointCommitted
    | BlobStored
    | EventRefused
)
AnyOutcome = EpisodeGraded | EpisodeDropped | EpisodeDead
TraceFact = EpisodeTaken | TokensGenerated | ToolRequested | ToolReturned | DeadlineNeared | EpisodeFinished
PolicyFact = TrainerClaimed | StepTrained | PolicyPublished | CheckpointCommitted

__all__ = [
    "AnswerKeyStored",
    "AnyEvent",
    "AnyOutcome",
    "BlobStored",
    "CheckpointCommitted",
    "DeadlineNeared",
    "EpisodeDead",
    "EpisodeDropped",
    "EpisodeFinished",
    "EpisodeGraded",
    "EpisodeRequested",
    "EpisodeTaken",
    "Event",
    "EventRefused",
    "GroupAdmitted",
    "GroupVerdict",
    "Outcome",
    "PolicyFact",
    "PolicyPublished",
    "RunEnded",
    "RunStarted",
    "StepTrained",
    "TokensGenerated",
    "ToolRequested",
    "ToolReturned",
    "TraceFact",
    "TrainerClaimed",
    "Trajectory",
]
