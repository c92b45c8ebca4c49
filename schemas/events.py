"""The events: facts in the past tense, appended to a stream under a subject that ends with their key.

Every event is a tagged msgspec struct, encoded as msgpack. `id` is deterministic: the same fact has the same id whoever
retries it. `at_ns` is the writer's clock in nanoseconds since the epoch; it is for reading, and decides nothing but how much of
an episode's wall clock is used up.
Fields are only ever added, with a default; a field is never renamed, retyped or given a new meaning.
"""

import msgspec

from schemas.records import (
    AnswerKey,
    BlobRef,
    Column,
    Count,
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
    """A name for exactly these settings, 16 hex digits; every request repeats it."""
    seed: int
    """The seed of the run, from which every other seed is derived."""
    config: bytes
    """The settings after all overrides, as JSON."""
    code_version: str = ""


class GroupAdmitted(Event, tag="group_admitted", frozen=True, kw_only=True):
    """`members` episodes of one task may begin. `slot` numbers the groups of a purpose; a refill takes its slot over.

    `progress` is the newest policy step at admission. `purpose` is `train`, `eval` or `synthesis`; `label` tells several
    evaluations apart.
    """

    group: str
    purpose: str
    slot: Count
    task: Task
    members: Count
    seeds: list[int]
    """One sampling seed per member."""
    progress: int
    refill: Count = 0
    """How many groups had this slot before."""
    refill_of: str | None = None
    """The discarded group whose slot this one takes."""
    label: str = ""


class EpisodeRequested(Event, tag="episode_requested", frozen=True, kw_only=True):
    """An episode was asked for. `model` is a policy name; `version` pins it, None means the newest.

    `attempt` grows when the scheduler asks again for an episode that no driver holds.
    """

    episode: str
    group: str
    member: Count
    """Index in its group, from 0."""
    members: Count
    """Size of the group."""
    slot: Count
    purpose: str
    task: Task
    seed: int
    """Sampling seed of the episode."""
    progress: int
    recipe_hash: str
    attempt: Count = 0
    refill: Count = 0
    model: str = "policy"
    version: Version | None = None
    parent_episode: str | None = None
    """The episode that asked for this one, for sub-agents and synthesis."""
    label: str = ""


class AnswerKeyStored(Event, tag="answer_key_stored", frozen=True, kw_only=True):
    """The references of a task, for graders, declared tools and the viewer."""

    key: AnswerKey


class EvaluationFolded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far an evaluation has come."""

    ended: int
    """Episodes with an outcome."""
    correct: int = 0
    """Of these, the right ones."""


class PlanFolded(Event, tag="plan_folded", frozen=True, kw_only=True):
    """What the scheduler has to know of OUTCOMES up to `watermark`, so that these can be purged.

    It stands for every outcome up to `watermark`, and for the facts of PLAN before it as far as they concern these.
    """

    run: str
    watermark: int
    """Every training outcome up to this sequence of OUTCOMES is settled."""
    step: int
    """Batches that are complete."""
    settled: list[Interval]
    """Sequences above `watermark` that are settled as well."""
    closed_slots: list[Interval]
    """Training slots that are resolved."""
    refills: dict[int, int]
    """By open slot whose group was discarded: the refill that it waits for."""
    open: dict[str, list[int]]
    """Admitted episodes that had no outcome when this was written: members by group."""
    evaluations: dict[str, EvaluationFolded]
    """By label, as of when this was written."""


class RunEnded(Event, tag="run_ended", frozen=True, kw_only=True):
    """The run is over; `reason` is `completed`, `stopped` or the name of an error."""

    run: str
    reason: str
    message: str = ""
    """What to do about it, when `reason` is an error."""


# --- TRACE: written by the driver that holds the episode --------------------------------------------------------------


class EpisodeTaken(Event, tag="episode_taken", frozen=True, kw_only=True):
    """A driver holds the episode from here on."""

    episode: str
    driver: str
    """Id of the driver."""
    attempt: Count
    """`attempt` of the request it answers."""
    request: EpisodeRequested
    """The request, so that TRACE alone is enough to go on with the episode."""


class HeldFact(Event, frozen=True, kw_only=True):
    """A fact of the driver that holds the episode. A fold of TRACE takes it only after the `EpisodeTaken` that it names."""

    episode: str
    attempt: int = -1
    """`attempt` of the writer's `EpisodeTaken`; -1 where it is not known."""
    driver: str = ""
    """`driver` of the writer's `EpisodeTaken`; empty where it is not known."""


class TokensGenerated(HeldFact, tag="tokens_generated", frozen=True, kw_only=True):
    """Tokens of one generation from `offset` on, at most 2,000. Columns `ids` u4 and `logprobs` f4, both (n,).

    `versions` counts from `offset`. `finish` is None while more tokens follow, else `stop`, `length` or `abort`.
    """

    request: str
    """Id of the generation; it is unique in the episode and kept when the generation is asked for again."""
    turn: Count
    offset: Count
    columns: dict[str, Column]
    """`ids` u4 and `logprobs` f4, both (n,)."""
    versions: list[VersionRun]
    finish: str | None = None
    engine: str = ""
    """Id of the engine that generated them."""
    elapsed_ns: int = 0
    """From the engine's acceptance of the request to these tokens."""
    n_asked: int = 1
    """How often this driver has asked for this generation: above 1, an engine or its tokens were lost."""
    request_hash: str = ""
    """xxh3-64 hex of what was asked for (`asearch.agents.episode.request_hash`), at offset 0 alone; empty: not known."""


class ToolRequested(HeldFact, tag="tool_requested", frozen=True, kw_only=True):
    """A tool call was asked for; the tool actor sends its result to the core subject `reply_to`."""

    call: str
    """Id of the call in its episode; a repeat carries the same one."""
    turn: Count
    tool: str
    argument: str
    """The query or URL as the policy wrote it."""
    task: str
    """`Task.id`; with `member` and `turn` it names the call whatever the run, for seeded latencies and caches."""
    member: Count
    reply_to: str
    seed: int = 0
    """Sampling seed of the episode."""


class ToolReturned(HeldFact, tag="tool_returned", frozen=True, kw_only=True):
    """The result of a tool call, as the policy will see it; large results lie in BLOBS."""

    call: str
    """As in `ToolRequested`."""
    turn: Count
    result: ToolResult | None = None
    """None when the result lies in `blob`."""
    blob: BlobRef | None = None


class DeadlineNeared(HeldFact, tag="deadline_neared", frozen=True, kw_only=True):
    """The episode's wall clock runs out: its next generation is the forced answer."""


class EpisodeFinished(HeldFact, tag="episode_finished", frozen=True, kw_only=True):
    """The agent is done; the episode waits for its outcome.

    `generated` holds the text of every generation: with the tool log and the answer key all that a grader reads.
    """

    group: str
    member: Count
    members: Count
    slot: Count
    purpose: str
    task: str
    status: str
    """`answered`, `forced` (answer forced by a budget), `ended` (no answer), `malformed` or `exhausted` (a budget ran out)."""
    answer: str | None
    """The text inside the answer tag; None where there is none."""
    generated: list[str]
    tool_log: list[ToolUse]
    """Every tool call, in order."""
    trajectory: BlobRef | None
    """Where the `Trajectory` lies; None if nothing is to be learned from the episode."""
    n_turns: Count
    n_tokens_generated: Count
    """Tokens sampled from the policy, over all its generations."""
    refill: Count = 0
    label: str = ""
    elapsed_ns: int = 0
    """How long the driver that finished it held it."""
    oldest: Version | None = None
    """The version of the lowest step among its generated tokens."""
    generated_blob: BlobRef | None = None
    """Where `generated` lies instead, when it is large: a msgpack list of texts."""
    meta: dict[str, str] = {}
    """`Task.meta`, for reports."""
    requested_ns: int = 0
    """`at_ns` of the request that the driver worked on; 0 where it is not known."""


# --- OUTCOMES: exactly one per episode, the first wins ----------------------------------------------------------------


class Outcome(Event, frozen=True, kw_only=True):
    """How an episode ended. Everything that group closing needs is here, so the ledger reads this stream alone."""

    episode: str
    group: str
    member: Count
    members: Count
    slot: Count
    purpose: str
    task: str
    refill: Count = 0
    label: str = ""


class EpisodeGraded(Outcome, tag="episode_graded", frozen=True, kw_only=True):
    """The episode was graded and its trajectory may be trained."""

    reward: Reward
    trajectory: BlobRef | None
    """As in `EpisodeFinished`."""
    status: str
    """As in `EpisodeFinished`."""
    answer: str | None
    """As in `EpisodeFinished`."""
    n_turns: Count
    n_tokens_generated: Count
    """As in `EpisodeFinished`."""
    n_searches: Count
    """Calls of the search tool."""
    n_reads: Count
    """Calls of the access tool."""
    oldest: Version | None = None
    """The version of the lowest step among its generated tokens."""
    elapsed_ns: int = 0
    """As in `EpisodeFinished`."""
    meta: dict[str, str] = {}
    """`Task.meta`, for reports."""
    correct: bool = False
    """Whether the evaluation metric takes the answer as right; `reward` may differ."""


class EpisodeDropped(Outcome, tag="episode_dropped", frozen=True, kw_only=True):
    """The episode ended before grading for a reason outside the policy: an outage, a deadline, the end of the run."""

    reason: str
    """A name, e.g. `deadline`, `tool_outage`, `engine_outage`, `grader_outage`, `run_ended`."""
    message: str = ""
    """Details for a reader."""


class EpisodeDead(Outcome, tag="episode_dead", frozen=True, kw_only=True):
    """The episode cannot be finished by anybody: `no_progress`, `blob_missing`, `poison`."""

    reason: str
    """`no_progress`, `blob_missing` or `poison`."""
    message: str = ""
    """Details for a reader."""


# --- POLICY: the trainer's journal ------------------------------------------------------------------------------------


class TrainerClaimed(Event, tag="trainer_claimed", frozen=True, kw_only=True):
    """A trainer took the model over. Every later append of an older claim is refused by the broker."""

    model: str
    """Policy name."""
    lineage: Count
    step: Count
    """The step it goes on from."""
    checkpoint: str | None
    """Folder it restored, None for a fresh start."""
    trainer: str
    """Id of the trainer."""


class GroupVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a group at the step that closed over it: `counted`, or discarded for `reason`."""

    group: str
    episodes: Count
    """How many graded episodes it has."""
    reason: str | None = None


class StepTrained(Event, tag="step_trained", frozen=True, kw_only=True):
    """The policy went from `step` to `step + 1`. `empty` steps had no group to train on and changed no weight."""

    model: str
    lineage: Count
    step: Count
    verdicts: list[GroupVerdict]
    """One for every group that closed for this step."""
    staleness: dict[int, int]
    """Trained tokens by staleness."""
    n_tokens_trained: Count
    n_tokens_masked_stale: Count
    """Tokens left out by the rule `mask`, though their episode was trained."""
    n_tokens_discarded: Count
    """Generated tokens of discarded groups and of episodes left out by the rule `discard`."""
    empty: bool
    metrics: dict[str, float]
    """Plain numbers by name."""
    elapsed_ns: int = 0
    """The update itself."""
    idle_ns: int = 0
    """How long the trainer had waited for the batch."""
    tokens: BlobRef | None = None
    """Where the `StepTokens` lie, under the episode `step_tokens_key`; None where nothing was recorded token by token."""


class PolicyPublished(Event, tag="policy_published", frozen=True, kw_only=True):
    """The weights of a version can be loaded from the manifest's folder."""

    model: str
    version: Version
    parent: Version | None
    """The version it was trained from; None for the first of a model."""
    manifest: WeightManifest


class CheckpointCommitted(Event, tag="checkpoint_committed", frozen=True, kw_only=True):
    """A checkpoint is durable on disk. `watermark` is the last OUTCOMES sequence that it accounts for."""

    model: str
    lineage: Count
    step: Count
    path: str
    """Folder on the trainer's host."""
    watermark: Count
    counted: list[Interval]
    """OUTCOMES sequences of counted episodes, as far as they reach above the watermark; the manifest has them all."""


# --- BLOBS and DEAD ---------------------------------------------------------------------------------------------------


class BlobStored(Event, tag="blob_stored", frozen=True, kw_only=True):
    """One chunk of a payload of `n_chunks` chunks; `hash` is the xxh3-128 of the whole."""

    episode: str
    hash: str
    index: Count
    """0 to n_chunks - 1."""
    n_chunks: Count
    data: bytes
    """At most 1 MiB."""


class EventRefused(Event, tag="event_refused", frozen=True, kw_only=True):
    """Bytes that could not be handled, kept with the reason and where they came from."""

    stream: str
    """Name of the stream in the topology, or the broker's name of it."""
    subject: str
    sequence: Count
    """Where it stands in that stream."""
    actor: str
    """Kind of the actor that refused it."""
    reason: str
    """The error, in words."""
    data: bytes
    """The bytes as they were; of a very large message the beginning."""
    size_bytes: Count = 0
    """How many bytes the message had; 0 where that is not known."""


class EventRequeued(Event, tag="event_requeued", frozen=True, kw_only=True):
    """Refused bytes were appended to their subject again by somebody who had mended what refused them."""

    stream: str
    """As in `EventRefused`."""
    sequence: Count
    """As in `EventRefused`."""
    requeued: Count
    """Where the same bytes stand now, in the same stream."""
    refused: str = ""
    """`id` of the `EventRefused`; empty where that is `dead-{stream}-{sequence}`."""


AnyEvent = (
    RunStarted
    | GroupAdmitted
    | EpisodeRequested
    | AnswerKeyStored
    | PlanFolded
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
    | EventRequeued
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
    "EvaluationFolded",
    "Event",
    "EventRefused",
    "EventRequeued",
    "GroupAdmitted",
    "GroupVerdict",
    "HeldFact",
    "Outcome",
    "PlanFolded",
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
