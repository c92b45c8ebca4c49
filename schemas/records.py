"""The records that events carry: tasks, segments, rewards, tool results, versions."""

import sys
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A number, position or step that cannot be negative; bytes that say otherwise are refused when they are decoded."""
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Neither infinite nor NaN."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value inside an event. Unknown fields are skipped, so that older code reads newer records."""


class Task(Record, frozen=True, kw_only=True):
    """A question with its metadata. Its references are in `AnswerKey`, which a driver never reads."""

    id: str
    question: str
    attachments: list[str] = []
    """Paths or URLs of files that belong to the question."""
    meta: dict[str, str] = {}
    """Facts about the task for reports and samplers, e.g. `hops`. Never the answer."""


class AnswerKey(Record, frozen=True, kw_only=True):
    """The privileged references of a task."""

    task: str
    """`Task.id`."""
    answers: list[str]
    """Accepted answers, any of which is right; for set rewards, the members of the set."""
    aug_answers: list[str] = []
    """Further accepted spellings."""


class Version(Record, order=True, frozen=True, kw_only=True):
    """A policy version: the step grows with updates, the lineage with every trainer that restarts from a checkpoint."""

    lineage: Count
    step: Count

    def __str__(self) -> str:
        return f"{self.lineage}.{self.step}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read what `str()` wrote. Raises ValueError for anything else."""
        lineage, _, step = text.partition(".")
        return cls(lineage=int(lineage), step=int(step))


class Column(Record, frozen=True, kw_only=True):
    """A packed array: little-endian `dtype` ("u4", "f4", "u1", ...), its shape and its bytes."""

    dtype: str
    shape: tuple[Count, ...]
    """Sizes of the dimensions; (n,) for one value per token."""
    data: bytes
    """The values in row-major order, `prod(shape)` of them."""


class VersionRun(Record, frozen=True, kw_only=True):
    """Tokens [start, end) were generated under one policy version, as the engine's reply said."""

    version: Version
    start: Count
    end: Count


class OriginRun(Record, frozen=True, kw_only=True):
    """Tokens [start, end) come from one origin: `prompt`, `generated`, `tool` or `forced`."""

    origin: str
    """`prompt`, `generated`, `tool` or `forced`; only `generated` tokens can be trained."""
    start: Count
    end: Count


class Segment(Record, frozen=True, kw_only=True):
    """One training sequence of T tokens: the first `n_prompt` are the first prompt, the rest extends it.

    Columns, each of shape (T,): `ids` u4; `mask` u1 (1 = generated in this segment and trained); `logprobs` f4 (behaviour
    log-probability of the token under the version that sampled it, 0 where the mask is 0). `versions` covers exactly the
    tokens whose mask is 1.
    """

    id: str
    """Unique in its trajectory."""
    n_prompt: Count
    first_turn: int
    """Turns first_turn..last_turn of the episode, both included, generated its trained tokens."""
    last_turn: int
    columns: dict[str, Column]
    """By name: `ids`, `mask`, `logprobs`, and what later work adds."""
    versions: list[VersionRun]
    origins: list[OriginRun] = []
    """Covers all T tokens."""
    parent: str | None = None
    """The segment whose text this one continues or was split from, if any."""


class Trajectory(Record, frozen=True, kw_only=True):
    """What learning reads of a finished episode."""

    episode: str
    segments: list[Segment]


class TrainedSegment(Record, frozen=True, kw_only=True):
    """What an update did with one segment: the n tokens that entered the loss, in order.

    Columns, each of shape (n,): `positions` u4 (index in the segment), `logprobs` f4 (log-probability under the policy that the
    update began from).
    """

    segment: str
    """`Segment.id`."""
    columns: dict[str, Column]
    """By name: `positions`, `logprobs`, and what later work adds."""


class TrainedEpisode(Record, frozen=True, kw_only=True):
    """What an update did with one episode."""

    episode: str
    advantage: Finite
    """The advantage that all its trained tokens had."""
    segments: list[TrainedSegment] = []
    """Those with trained tokens; empty where the bound on recorded tokens left them out."""


class StepTokens(Record, frozen=True, kw_only=True):
    """The tokens of one update as the trainer saw them, for whoever looks at an episode."""

    model: str
    lineage: Count
    step: Count
    episodes: list[TrainedEpisode]


class RewardItem(Record, frozen=True, kw_only=True):
    """A named part of a reward, with the tokens [start, end) of a segment that it speaks of, where it does."""

    name: str
    value: Finite
    weight: Finite = 1.0
    """Its factor in the sum that `Reward.value` is."""
    segment: str | None = None
    """`Segment.id`; None where the item speaks of the whole episode."""
    start: int | None = None
    end: int | None = None


class Reward(Record, frozen=True, kw_only=True):
    """The verdict of a grader: the value that learning uses, and the parts it is made of."""

    value: Finite
    items: list[RewardItem] = []
    """The parts; `value` is their weighted sum."""


class Document(Record, frozen=True, kw_only=True):
    """One document that a tool returned."""

    url: str
    text: str
    """What the tool returned of it: a snippet or the extracted text of a page."""
    title: str = ""


class ToolResult(Record, frozen=True, kw_only=True):
    """What a tool returned, or how it failed.

    `error` is one of `retryable`, `permanent`, `refused`, `timeout`; the first and the last are the infrastructure's fault.
    """

    documents: list[Document] = []
    """In the tool's order, best first for a search."""
    error: str | None = None
    message: str = ""
    """What went wrong, for a reader."""
    elapsed_ns: int = 0
    """From the start of the call to its end, retries included."""


class ToolUse(Record, frozen=True, kw_only=True):
    """One line of an episode's tool log: what was asked and what came of it, without page text."""

    turn: int
    tool: str
    """`search`, `access` or the name of another tool of the environment."""
    argument: str
    """The query or URL as the policy wrote it."""
    n_documents: Count
    error: str | None = None
    """As in `ToolResult`."""


class BlobRef(Record, frozen=True, kw_only=True):
    """Where a large payload lies: `n_chunks` messages on the BLOBS subject of `episode` and `hash` (xxh3-128 hex)."""

    episode: str
    hash: str
    size_bytes: Count
    n_chunks: Count


class ShardFile(Record, frozen=True, kw_only=True):
    """One file of a published version, with the xxh3-128 checksum of every tensor in it."""

    name: str
    """File name below the manifest's path."""
    size_bytes: Count
    checksums: dict[str, str]
    """xxh3-128 hex by tensor name."""
    header_bytes: Count = 0
    """Size of what stands before the tensors: the header of safetensors and the eight bytes of its length; 0: not told."""
    header_checksum: str = ""
    """xxh3-128 hex of these bytes; empty: not told."""


class CompanionFile(Record, frozen=True, kw_only=True):
    """A file beside the weights that a server may need: configuration, tokenizer, index."""

    name: str
    size_bytes: Count
    checksum: str
    """xxh3-128 hex of the file."""


class Broadcast(Record, frozen=True, kw_only=True):
    """A collective in which the version is sent once, to the engines that are named; the others take it another way."""

    group: str
    """Another one whenever the members change."""
    address: str
    """Where the members meet."""
    port: Count
    """Likewise."""
    members: list[str]
    """Engines in the order of their ranks, from 1; rank 0 sends."""
    pids: list[int] = []
    """Their processes, in the same order: one that was started again since is no member. Empty: not told."""
    backend: str
    """`gloo` or `nccl`."""
    timeout_s: Finite
    """How long any member waits for the others."""


class WeightManifest(Record, frozen=True, kw_only=True):
    """The weights of a version: a folder in Hugging Face layout on the trainer's host."""

    path: str
    """Absolute folder."""
    shards: list[ShardFile]
    """Every weight file."""
    companions: list[CompanionFile] = []
    """The other files of the folder, as far as they are told."""
    source: str = ""
    """Base URL from which other hosts pull the folder's files; empty where the trainer serves none."""
    broadcast: Broadcast | None = None
    """Where it is broadcast, if it is."""


class Interval(Record, frozen=True, kw_only=True):
    """Sequences first..last of a stream, both included."""

    first: Count
    last: Count
