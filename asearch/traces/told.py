"""An episode told as a whole: what `asearch show` prints and `asearch export` writes, from one place."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from asearch.agents.packed import unpack_ids, unpack_logprobs
from asearch.agents.segments import segments
from asearch.traces.record import EpisodeRecord
from asearch.traces.rows import EpisodeRow
from asearch.traces.story import Item, StoryTeller, tell_all
from schemas.events import TokensGenerated
from schemas.records import AnswerKey, Segment, VersionRun

TokenText = Callable[[int], str]


class TokenLine(msgspec.Struct, frozen=True, gc=False):
    """One token of a training sequence."""

    position: int
    id: int
    text: str
    """Empty where the run's tokenizer is gone."""
    logprob: float | None
    """Under the policy that sampled it; None for a token that was not generated here."""
    mask: int
    """1: it may be trained."""
    version: str
    """The policy version that sampled it; empty for others."""
    origin: str


class TokenTable(msgspec.Struct, frozen=True):
    """The tokens of one training sequence, or of a generation that no sequence holds."""

    name: str
    lines: list[TokenLine]


class ToldEpisode(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that people are told of an episode. As JSON it is what `asearch show --json` prints."""

    run: str
    row: EpisodeRow
    items: list[Item]
    """As `StoryTeller` tells them, the parts of a generation joined into one item of kind `generation`."""
    key: AnswerKey | None
    """The accepted answers; None where the broker's store is gone."""
    trace_id: str = ""
    """Of its OpenTelemetry trace, 32 hex digits."""
    notes: list[str] = []
    """What could not be told and why, and what is not as it was written."""
    tokens: list[TokenTable] | None = None


def told(
    run: str,
    row: EpisodeRow,
    record: EpisodeRecord,
    teller: StoryTeller,
    *,
    key: AnswerKey | None,
    token_text: TokenText | None,
    trace_id: str = "",
) -> ToldEpisode:
    """Tell an episode with its tokens. `token_text` None leaves the texts of tokens out."""
    items = joined(tell_all(teller, record))
    notes = [*record.damage, *([teller.trouble] if teller.trouble else [])]
    tokens = token_tables(record, teller, token_text)
    return ToldEpisode(run=run, row=row, items=items, key=key, trace_id=trace_id, notes=notes, tokens=tokens)


def joined(items: list[Item]) -> list[Item]:
    """The items with every run of `tokens` of one request as one `generation`."""
    found: list[Item] = []
    for item in items:
        if item["kind"] != "tokens":
            found.append(item)
        elif found and found[-1]["kind"] == "generation" and found[-1]["request"] == item["request"]:
            _extend(found[-1], item)
        else:
            rest = {name: value for name, value in item.items() if name not in ("text_from", "offset")}
            found.append({**rest, "kind": "generation", "began_ns": item["at_ns"] - item["elapsed_ns"]})
    return found


def _extend(whole: Item, part: Item) -> None:
    whole["text"] = whole["text"][: part["text_from"]] + part["text"]
    # A generation that was lost with its engine is asked for again from where it stood.
    whole["versions"] = [*(run for run in whole["versions"] if run["end"] <= part["offset"]), *part["versions"]]
    whole["n"] = part["offset"] + part["n"]
    for name in ("finish", "engine", "elapsed_ns", "at_ns"):
        whole[name] = part[name]
    whole["n_asked"] = max(whole["n_asked"], part["n_asked"])


# --- tokens ---


def token_tables(record: EpisodeRecord, teller: StoryTeller, token_text: TokenText | None) -> list[TokenTable]:
    """The tokens of every training sequence, and of what was generated beside them."""
    tables: list[TokenTable] = []
    done: set[str] = set()
    if teller.state is not None:
        tables.extend(_segment_table(segment, token_text) for segment in segments(teller.state))
        open_request = teller.state.call.id if teller.state.call is not None else ""
        done = {fact.request for fact in record.facts if isinstance(fact, TokensGenerated)} - {open_request}
    parts: dict[str, list[TokensGenerated]] = {}
    for fact in record.facts:
        if isinstance(fact, TokensGenerated) and fact.request not in done:
            parts.setdefault(fact.request, []).append(fact)
    return tables + [_generation_table(request, facts, token_text) for request, facts in parts.items()]


def _segment_table(segment: Segment, token_text: TokenText | None) -> TokenTable:
    columns = segment.columns
    ids = unpack_ids(columns["ids"].data)
    mask = np.frombuffer(columns["mask"].data, np.uint8).tolist()
    logprobs = unpack_logprobs(columns["logprobs"].data).tolist()
    versions = _spread(segment.versions, len(ids))
    origins = [""] * len(ids)
    for run in segment.origins:
        origins[run.start : run.end] = [run.origin] * (run.end - run.start)
    lines = [
        TokenLine(at, token, _text(token_text, token), logprobs[at] if mask[at] else None, mask[at], versions[at], origins[at])
        for at, token in enumerate(ids)
    ]
    return TokenTable(segment.id, lines)


def _generation_table(request: str, facts: list[TokensGenerated], token_text: TokenText | None) -> TokenTable:
    """Of a generation that is not complete, or whose prompt cannot be told."""
    lines: list[TokenLine] = []
    for fact in facts:
        if "ids" not in fact.columns or "logprobs" not in fact.columns:
            continue
        ids = unpack_ids(fact.columns["ids"].data)
        logprobs = unpack_logprobs(fact.columns["logprobs"].data).tolist()
        versions = _spread(fact.versions, len(ids))
        del lines[fact.offset :]
        lines.extend(
            TokenLine(fact.offset + at, token, _text(token_text, token), logprob, 1, versions[at], "generated")
            for at, (token, logprob) in enumerate(zip(ids, logprobs, strict=False))
        )
    return TokenTable(request, lines)


def _text(token_text: TokenText | None, token: int) -> str:
    return "" if token_text is None else token_text(token)


def _spread(runs: list[VersionRun], n: int) -> list[str]:
    versions = [""] * n
    for run in runs:
        versions[run.start : run.end] = [str(run.version)] * (min(run.end, n) - run.start)
    return versions


def to_json(episode: ToldEpisode, *, with_tokens: bool) -> dict[str, Any]:
    """One JSON document; tokens only where they are wanted."""
    content: dict[str, Any] = msgspec.to_builtins(episode)
    if not with_tokens:
        del content["tokens"]
    return content
