"""From an ended episode, or an update, to the rows of the archive's tables. Column names and meanings are in `tables`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from asearch.agents.segments import segments
from asearch.traces.behaviour import FLAGS, Behaviour, behaviour_of
from asearch.traces.names import trace_id_of
from asearch.traces.record import EpisodeRecord
from asearch.traces.rows import EpisodeRow
from asearch.traces.trained_tokens import trained_logprobs
from asearch.traces.turns import FoldedEpisode, Turn
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeGraded, StepTrained
from schemas.records import OriginRun, Segment, TrainedEpisode, TrainedSegment, Version, VersionRun

Row = dict[str, Any]
_ROW_FIELDS = tuple(name for name in EpisodeRow.__struct_fields__)


@dataclass(frozen=True)
class EndedEpisode:
    """All that is known of an episode with an outcome."""

    record: EpisodeRecord
    row: EpisodeRow
    sequence: int
    """Of its outcome in OUTCOMES."""
    folded: FoldedEpisode
    trained: TrainedEpisode | None = None
    """What its update did with it, where that is recorded."""

    @cached_property
    def segments(self) -> list[Segment]:
        """Its training sequences; none where it was not graded or cannot be folded."""
        state = self.folded.state
        return segments(state) if state is not None and isinstance(self.record.outcome, EpisodeGraded) else []


def episode_row(run: str, ended: EndedEpisode, behaviour: Behaviour | None = None) -> Row:
    """The row in `episodes`."""
    record, turns, outcome = ended.record, ended.folded.turns, ended.record.outcome
    assert outcome is not None  # noqa: S101
    behaviour = behaviour or behaviour_of(record, turns)
    request, finished, takes, row = record.request, record.finished, record.takes, ended.row
    graded = outcome if isinstance(outcome, EpisodeGraded) else None
    found: Row = {name: getattr(row, name) for name in _ROW_FIELDS}
    if graded is None:
        # Nobody else counted what an episode did that was not graded.
        found["n_turns"], found["n_tokens"] = behaviour.n_turns, behaviour.n_tokens
        found["n_searches"], found["n_reads"] = behaviour.n_searches, behaviour.n_reads
        found["answer"], found["ending"] = (finished.answer, finished.status) if finished is not None else (None, "")
    found |= {
        "run": run,
        "members": outcome.members,
        "seed": request.seed if request else None,
        "recipe_hash": request.recipe_hash if request else "",
        "parent_episode": request.parent_episode if request else None,
        "outcome": row.stage,
        "driver": takes[-1].driver if takes else "",
        "message": outcome.message if isinstance(outcome, EpisodeDropped | EpisodeDead) else "",
        "reward_items": [_struct(item, "name", "value", "weight") for item in graded.reward.items] if graded else [],
        "advantage": ended.trained.advantage if ended.trained else None,
        "n_takes": len(takes),
        "taken_ns": takes[0].at_ns if takes else 0,
        "finished_ns": finished.at_ns if finished else 0,
        "outcome_sequence": ended.sequence,
        "trace_id": trace_id_of(run, record.episode),
        **_of_turns(ended),
        **{name: getattr(behaviour, name) for name in FLAGS},
    }
    return found


def _of_turns(ended: EndedEpisode) -> Row:
    turns = ended.folded.turns
    prompts = [turn.n_prompt for turn in turns if turn.n_prompt is not None]
    versions = dict.fromkeys(str(run.version) for turn in turns for run in turn.versions)
    oldest = min((run.version for turn in turns for run in turn.versions), key=lambda v: (v.step, v.lineage), default=None)
    return {
        "n_prompt_tokens": sum(prompts) if len(prompts) == len(turns) else None,
        "n_segments": len(ended.segments) if ended.folded.state is not None else None,
        "engines": list(dict.fromkeys(turn.engine for turn in turns if turn.engine)),
        "version": ended.row.version or ("" if oldest is None else str(oldest)),
        "versions": list(versions),
        "generation_s": sum(turn.elapsed_s for turn in turns),
        "tool_s": sum(turn.tool_s for turn in turns),
    }


def turn_rows(ended: EndedEpisode) -> list[Row]:
    """The rows in `turns`."""
    return [_turn_row(ended.record.episode, turn) for turn in ended.folded.turns]


def _turn_row(episode: str, turn: Turn) -> Row:
    return {
        "episode": episode,
        "turn": turn.turn,
        "kind": turn.kind,
        "n_prompt_tokens": turn.n_prompt,
        "n_tokens": len(turn.ids),
        "text": turn.text,
        "thought": turn.thought,
        "tool": turn.tool,
        "argument": turn.argument,
        "n_documents": len(turn.documents) if turn.tool else None,
        "urls": [document.url for document in turn.documents],
        "tool_error": turn.error,
        "tool_s": turn.tool_s if turn.returned_ns else None,
        "elapsed_s": turn.elapsed_s,
        "engine": turn.engine,
        "versions": [_version(run) for run in turn.versions],
        "finish": turn.finish,
        "n_asked": turn.n_asked,
        "at_ns": turn.at_ns,
    }


def segment_rows(ended: EndedEpisode) -> list[Row]:
    """The rows in `segments`. Columns of tokens are packed little-endian bytes."""
    row, trained = ended.row, ended.trained
    recorded = {each.segment: each for each in trained.segments} if trained else {}
    found: list[Row] = []
    for segment in ended.segments:
        mask = segment.columns["mask"].data
        known = recorded.get(segment.id)
        found.append(
            {
                "episode": row.episode,
                "segment": segment.id,
                "parent": segment.parent,
                "n_prompt": segment.n_prompt,
                "first_turn": segment.first_turn,
                "last_turn": segment.last_turn,
                "n_tokens": len(mask),
                "n_trained": mask.count(1),
                "ids": segment.columns["ids"].data,
                "mask": mask,
                "logprobs": segment.columns["logprobs"].data,
                "train_logprobs": _packed(known, len(mask)),
                "versions": [_version(run) for run in segment.versions],
                "origins": [_origin(run) for run in segment.origins],
                "advantage": trained.advantage if trained else None,
                "reward": row.reward,
                "step": row.step,
                "fate": row.fate,
            }
        )
    return found


def _packed(segment: TrainedSegment | None, n_tokens: int) -> bytes | None:
    values = None if segment is None else trained_logprobs(segment.columns, n_tokens)
    return None if values is None else values.tobytes()


def step_row(event: StepTrained, *, abandoned: bool) -> Row:
    """The row in `steps`."""
    counted = [verdict for verdict in event.verdicts if verdict.reason is None]
    others = [verdict for verdict in event.verdicts if verdict.reason is not None]
    n_trained = sum(event.staleness.values())
    return {
        "model": event.model,
        "lineage": event.lineage,
        "step": event.step,
        "version": str(Version(lineage=event.lineage, step=event.step + 1)),
        "abandoned": abandoned,
        "empty": event.empty,
        "n_groups_counted": len(counted),
        "n_groups_discarded": len(others),
        "n_episodes_counted": sum(verdict.episodes for verdict in counted),
        "n_episodes_discarded": sum(verdict.episodes for verdict in others),
        "verdicts": [{"group": v.group, "n_episodes": v.episodes, "reason": v.reason} for v in event.verdicts],
        "n_tokens_trained": event.n_tokens_trained,
        "n_tokens_masked_stale": event.n_tokens_masked_stale,
        "n_tokens_discarded": event.n_tokens_discarded,
        "staleness": [{"staleness": age, "n_tokens": n} for age, n in sorted(event.staleness.items())],
        "staleness_max": max((age for age, n in event.staleness.items() if n), default=None),
        "staleness_mean": sum(age * n for age, n in event.staleness.items()) / n_trained if n_trained else None,
        "metrics": [{"name": name, "value": value} for name, value in sorted(event.metrics.items())],
        "train_s": event.elapsed_ns / 1e9,
        "idle_s": event.idle_ns / 1e9,
        "at_ns": event.at_ns,
    }


def _struct(value: msgspec.Struct, *names: str) -> Row:
    return {name: getattr(value, name) for name in names}


def _version(run: VersionRun) -> Row:
    return {"version": str(run.version), "start": run.start, "end": run.end}


def _origin(run: OriginRun) -> Row:
    return _struct(run, "origin", "start", "end")
