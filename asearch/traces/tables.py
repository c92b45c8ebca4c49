"""The tables of an archive: every column with its type and its meaning, from which Parquet schemas and the document are made.

`python -m asearch.traces.tables [FILE]` writes the document, by default `infra/generated/archive.md`.
"""

import sys
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from asearch.errors import ConfigError
from asearch.traces.behaviour import FLAGS

DOCUMENT = Path(__file__).resolve().parents[2] / "infra" / "generated" / "archive.md"
FORMAT = "1"
"""Grows when a column changes its meaning; columns are only ever added otherwise."""

TEXT, INT, FLOAT, BOOL = "string", "int64", "float64", "bool"
TEXTS, IDS, MASK, LOGPROBS = "list<string>", "list<uint32>", "list<uint8>", "list<float32>"
LABELS = "list<int64>"
VERSIONS = "list<struct<version: string, start: int64, end: int64>>"
ORIGINS = "list<struct<origin: string, start: int64, end: int64>>"
ITEMS = "list<struct<name: string, value: float64, weight: float64>>"
METRICS = "list<struct<name: string, value: float64>>"
STALENESS = "list<struct<staleness: int64, n_tokens: int64>>"
VERDICTS = "list<struct<group: string, n_episodes: int64, reason: string>>"
MESSAGES = "list<struct<role: string, content: string, train: bool, tool_call_id: string, tool_calls: string>>"


@dataclass(frozen=True)
class ColumnSpec:
    """A column. Every one may be null where `meaning` says so, and nowhere else."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True)
class TableSpec:
    """A table: what one row is, and its columns in order."""

    name: str
    row: str
    columns: tuple[ColumnSpec, ...]

    @property
    def names(self) -> list[str]:
        """Column names."""
        return [column.name for column in self.columns]


def _columns(*rows: tuple[str, str, str]) -> tuple[ColumnSpec, ...]:
    return tuple(ColumnSpec(*row) for row in rows)


_FLAG_MEANINGS = {
    "planning": "it said more than its first step before anything was found",
    "reformulation": "it asked the same in other words",
    "reflection": "it said that what it got is not what it needs, and went on",
    "cross_validation": "it looked for the answer it had found in another source",
    "verification": "it checked the answer it had found before giving it",
    "honest_non_answer": "it said that it does not know",
    "repeated_query": "it asked a tool the same twice",
    "error_recovery": "after a call that failed or brought nothing another one brought something",
}

EPISODES = TableSpec(
    "episodes",
    "one ended episode: graded, dropped or dead",
    _columns(
        ("run", TEXT, "name of the run"),
        ("episode", TEXT, "name, unique in the run"),
        ("group", TEXT, "the episodes of one task that are compared"),
        ("member", INT, "index in its group, from 0"),
        ("members", INT, "size of its group"),
        ("purpose", TEXT, "`train`, `eval` or `synthesis`"),
        ("label", TEXT, "which evaluation, e.g. `before`; empty for training"),
        ("task", TEXT, "id of the task"),
        ("question", TEXT, "the question; empty for an episode that no driver took and whose plan is gone"),
        ("hops", TEXT, "`hops` of the task's metadata, if it has one"),
        ("slot", INT, "number of its group among those of the purpose"),
        ("refill", INT, "how many groups had this slot before"),
        ("attempt", INT, "how often it was asked for again"),
        ("progress", INT, "policy step at which its group was admitted"),
        ("seed", INT, "sampling seed; null where the request is gone"),
        ("recipe_hash", TEXT, "name of the settings that it was requested under"),
        ("parent_episode", TEXT, "the episode that asked for it; null for most"),
        ("outcome", TEXT, "`graded`, `dropped` or `dead`"),
        ("stage", TEXT, "the same, as lists of episodes name it"),
        ("ending", TEXT, "`answered`, `forced`, `ended`, `malformed` or `exhausted`; empty if it was not graded"),
        ("reason", TEXT, "why it was dropped, died, or its group was discarded; else empty"),
        ("message", TEXT, "details of the reason, for a reader"),
        ("fate", TEXT, "of a graded one `counted`, `discarded` or `queued`; else empty"),
        ("step", INT, "policy step whose update closed over its group; null if none did"),
        ("reward", FLOAT, "what learning uses; null if it was not graded"),
        ("reward_items", ITEMS, "the parts of the reward: `reward` is the sum of value times weight"),
        ("correct", BOOL, "whether the evaluation metric takes the answer as right; null if it was not graded"),
        ("advantage", FLOAT, "of all its trained tokens, where the update recorded it; else null"),
        ("answer", TEXT, "its answer; null if it gave none"),
        ("n_turns", INT, "generations"),
        ("n_searches", INT, "searches that returned without an error"),
        ("n_reads", INT, "pages that were found"),
        ("n_tokens", INT, "tokens that the policy generated"),
        ("n_prompt_tokens", INT, "prompt tokens of all its generations together; null where they cannot be told"),
        ("n_segments", INT, "its training sequences; null where they cannot be told"),
        ("n_takes", INT, "drivers that held it, one after the other"),
        ("driver", TEXT, "the last of them; empty if none did"),
        ("engines", TEXTS, "engines that generated its tokens"),
        ("version", TEXT, "oldest policy version among its tokens, `lineage.step`; empty if it has none"),
        ("versions", TEXTS, "every policy version among its tokens, in order of use"),
        ("requested_ns", INT, "when it was requested, nanoseconds since the epoch; 0 where that is not known"),
        ("taken_ns", INT, "when its first driver took it, nanoseconds since the epoch; 0: none did"),
        ("finished_ns", INT, "when its driver was done, nanoseconds since the epoch; 0: it was not"),
        ("ended_ns", INT, "when its outcome was written, nanoseconds since the epoch"),
        ("elapsed_s", FLOAT, "how long its last driver held it; null if it was not graded"),
        ("generation_s", FLOAT, "time of its generations, as the engines say"),
        ("tool_s", FLOAT, "time of its tool calls, as the tools say"),
        *((name, BOOL, _FLAG_MEANINGS[name]) for name in FLAGS),
        ("outcome_sequence", INT, "where its outcome stands in OUTCOMES"),
        ("trace_id", TEXT, "xxh3-128 hex of `run/episode`"),
    ),
)
TURNS = TableSpec(
    "turns",
    "one generation of an ended episode, with the tool call that it made",
    _columns(
        ("episode", TEXT, "the episode"),
        ("turn", INT, "number of the generation, from 0"),
        ("kind", TEXT, "`act`, `read` (of a tool text) or `answer` (a forced one)"),
        ("n_prompt_tokens", INT, "tokens of its prompt; null where they cannot be told"),
        ("n_tokens", INT, "tokens that it generated"),
        ("text", TEXT, "what it generated; null where no tokenizer was there for an unfinished episode"),
        ("thought", TEXT, "the same without its actions and tags"),
        ("tool", TEXT, "`search`, `access` or another tool that it called; empty if none"),
        ("argument", TEXT, "the query or URL as the policy wrote it; empty if none"),
        ("n_documents", INT, "documents that the tool returned; null without a call"),
        ("urls", TEXTS, "their URLs, best first for a search"),
        ("tool_error", TEXT, "`retryable`, `permanent`, `refused`, `timeout`, `payload_missing`; empty if none"),
        ("tool_s", FLOAT, "time of the tool call, as the tool says; null without a result"),
        ("elapsed_s", FLOAT, "from the engine's acceptance of the request to its last token"),
        ("engine", TEXT, "the engine that generated its last tokens"),
        ("versions", VERSIONS, "policy version of its tokens [start, end)"),
        ("finish", TEXT, "`stop`, `length` or `abort`; empty if it is not complete"),
        ("n_asked", INT, "how often it was asked for: above 1 an engine or its tokens were lost"),
        ("at_ns", INT, "when its last tokens were recorded, nanoseconds since the epoch"),
    ),
)
SEGMENTS = TableSpec(
    "segments",
    "one training sequence of T tokens of a graded episode",
    _columns(
        ("episode", TEXT, "the episode"),
        ("segment", TEXT, "name, unique in the run"),
        ("parent", TEXT, "the segment whose text it continues; null if none"),
        ("n_prompt", INT, "tokens of its first prompt"),
        ("first_turn", INT, "first turn that generated its trained tokens"),
        ("last_turn", INT, "last turn that did"),
        ("n_tokens", INT, "T"),
        ("n_trained", INT, "tokens whose mask is 1"),
        ("ids", IDS, "token ids, T of them"),
        ("mask", MASK, "1 where the token was generated in this segment and may be trained, T of them"),
        ("logprobs", LOGPROBS, "log-probability when the token was sampled, 0 where the mask is 0, T of them"),
        ("train_logprobs", LOGPROBS, "log-probability under the policy that the update began from, NaN where the token did "
         "not enter the loss, T of them; null where the update recorded none"),
        ("versions", VERSIONS, "policy version of the tokens [start, end) whose mask is 1"),
        ("origins", ORIGINS, "where the tokens [start, end) come from: `prompt`, `generated`, `tool` or `forced`"),
        ("advantage", FLOAT, "of its trained tokens, where the update recorded it; else null"),
        ("reward", FLOAT, "of the episode"),
        ("step", INT, "policy step whose update closed over its group; null if none did"),
        ("fate", TEXT, "as in episodes"),
    ),
)  # fmt: skip
STEPS = TableSpec(
    "steps",
    "one update of the policy",
    _columns(
        ("model", TEXT, "name of the policy"),
        ("lineage", INT, "grows with every trainer that restarts from a checkpoint"),
        ("step", INT, "it took the policy from this step to the next"),
        ("version", TEXT, "policy version after it, `lineage.step`"),
        ("abandoned", BOOL, "whether a later trainer went on from an earlier step, so that it does not count"),
        ("empty", BOOL, "whether there was nothing to train on, so that no weight changed"),
        ("n_groups_counted", INT, "groups that were trained"),
        ("n_groups_discarded", INT, "groups that were not"),
        ("n_episodes_counted", INT, "graded episodes of the former"),
        ("n_episodes_discarded", INT, "graded episodes of the latter"),
        ("verdicts", VERDICTS, "every group that closed; `reason` is null where it counted"),
        ("n_tokens_trained", INT, "tokens in the loss"),
        ("n_tokens_masked_stale", INT, "tokens left out for their age, though their episode was trained"),
        ("n_tokens_discarded", INT, "generated tokens of discarded groups and episodes"),
        ("staleness", STALENESS, "trained tokens by staleness in steps"),
        ("staleness_max", INT, "the largest of these; null where none was trained"),
        ("staleness_mean", FLOAT, "their mean over trained tokens; null where none was trained"),
        ("metrics", METRICS, "numbers of the update by name"),
        ("train_s", FLOAT, "the update itself"),
        ("idle_s", FLOAT, "how long the trainer had waited for the batch"),
        ("at_ns", INT, "when it was recorded, nanoseconds since the epoch"),
    ),
)
TABLES = {table.name: table for table in (EPISODES, TURNS, SEGMENTS, STEPS)}

_SOURCE = (
    ("run", TEXT, "name of the run"),
    ("episode", TEXT, "the episode"),
    ("task", TEXT, "id of the task"),
)
SFT = TableSpec(
    "sft",
    "one episode as chat messages; `rft` holds the best right answers of every task alone",
    _columns(
        *_SOURCE,
        ("reward", FLOAT, "of the episode"),
        ("correct", BOOL, "whether its answer is right"),
        ("messages", MESSAGES, "in OpenAI's shape: `role`, `content` (a tool's text as the policy saw it), `tool_call_id`, "
         "`tool_calls` (JSON lines hold the array, Parquet its JSON text), and `train`: whether the policy wrote it"),
    ),
)  # fmt: skip
TOKENS = TableSpec(
    "tokens",
    "one training sequence of T tokens",
    _columns(
        *_SOURCE,
        ("segment", TEXT, "name of the sequence, unique in the run"),
        ("reward", FLOAT, "of the episode"),
        ("correct", BOOL, "whether its answer is right"),
        ("input_ids", IDS, "token ids of the run's tokenizer, T of them"),
        ("loss_mask", MASK, "1 where the policy generated the token in this sequence, T of them"),
        ("labels", LABELS, "the token id where `loss_mask` is 1, else -100, T of them"),
    ),
)
DPO = TableSpec(
    "dpo",
    "two episodes of one group, the better one chosen",
    _columns(
        ("run", TEXT, "name of the run"),
        ("task", TEXT, "id of the task"),
        ("group", TEXT, "the group"),
        ("prompt", MESSAGES, "the messages that both begin with"),
        ("chosen", MESSAGES, "the messages that follow, of the better episode"),
        ("rejected", MESSAGES, "the messages that follow, of the worse one"),
        ("chosen_episode", TEXT, "the better episode"),
        ("rejected_episode", TEXT, "the worse one"),
        ("chosen_reward", FLOAT, "its reward"),
        ("rejected_reward", FLOAT, "its reward"),
        ("margin", FLOAT, "difference of the rewards"),
    ),
)
DATASETS = {"sft, rft": SFT, "sft, rft with --tokens": TOKENS, "dpo": DPO}
"""By what they are written for."""


# --- Parquet ----------------------------------------------------------------------------------------------------------


def has_parquet() -> bool:
    """Whether Parquet files can be written here."""
    return util.find_spec("pyarrow") is not None


def need_parquet() -> None:
    """Raise ConfigError where Parquet files cannot be written."""
    if not has_parquet():
        raise ConfigError("Parquet files need pyarrow, which is not installed: pip install 'asearch[parquet]'")


def arrow_type(name: str) -> Any:
    """The Arrow type that a column's type names. Raises KeyError for an unknown one."""
    import pyarrow as pa

    plain = {
        TEXT: pa.string(), INT: pa.int64(), FLOAT: pa.float64(), BOOL: pa.bool_(),
        "uint32": pa.uint32(), "uint8": pa.uint8(), "float32": pa.float32(),
    }  # fmt: skip
    if name.startswith("list<struct<"):
        fields = (part.split(": ") for part in name.removeprefix("list<struct<").removesuffix(">>").split(", "))
        return pa.list_(pa.struct([(field, plain[kind]) for field, kind in fields]))
    if name.startswith("list<"):
        return pa.list_(plain[name[5:-1]])
    return plain[name]


def arrow_schema(table: TableSpec, metadata: dict[str, str] | None = None) -> Any:
    """The Arrow schema of a table, with every meaning in its field's metadata. Raises ConfigError without pyarrow."""
    need_parquet()
    import pyarrow as pa

    fields = [pa.field(column.name, arrow_type(column.type), metadata={"meaning": column.meaning}) for column in table.columns]
    about = {"asearch.table": table.name, "asearch.row": table.row, "asearch.format": FORMAT, **(metadata or {})}
    return pa.schema(fields, metadata=about)


# --- the document -----------------------------------------------------------------------------------------------------


def document() -> str:
    """The columns of all tables, in Markdown."""
    lines = [
        "<!-- Written by `python -m asearch.traces.tables`. -->",
        "",
        "# Columns of an archive",
        "",
        "`asearch archive RUN` writes `episodes-*.parquet`, `turns-*.parquet`, `segments-*.parquet` and `steps-*.parquet` into",
        "the run's folder; the recorder does so at the end of a run. Every file's schema holds the meanings below as metadata.",
        "",
    ]
    for table in TABLES.values():
        lines += _described(f"`{table.name}*.parquet`", table)
    lines += ["# Columns of a data set", "", "`asearch dataset RUN --format sft|rft|dpo` writes JSON lines or Parquet.", ""]
    for title, table in DATASETS.items():
        lines += _described(title, table)
    return "\n".join(lines)


def _described(title: str, table: TableSpec) -> list[str]:
    rows = [f"| `{column.name}` | {_short(column.type)} | {column.meaning} |" for column in table.columns]
    return [f"## {title}", "", f"One row is {table.row}.", "", "| column | type | meaning |", "| --- | --- | --- |", *rows, ""]


def _short(kind: str) -> str:
    return f"`{kind}`"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENT).write_text(document(), encoding="utf-8")
