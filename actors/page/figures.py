"""What the page says of a run in numbers: its state now, and one point a step."""

from typing import Any

from actors.runtime.bus import StreamInfo
from actors.runtime.following import LOST_S, View
from asearch.evaluation.report import RunReport
from asearch.evaluation.sums import EpisodeSums, rounded
from asearch.evaluation.training import Window
from schemas.events import CheckpointCommitted, Event, PolicyPublished, StepTrained, TrainerClaimed
from schemas.records import Version

MAX_TIMELINE = 200


def summary(view: View, now_ns: int) -> dict[str, Any]:
    """The state of a run; what concerns its processes and the broker is the caller's to add."""
    report = view.report
    opened, queued = (None if at is None else round(max(0.0, (now_ns - at) / 1e9), 2) for at in report.oldest_ns())
    return {
        "now_ns": now_ns,
        "phase": report.phase,
        "started_ns": report.started.at_ns if report.started else None,
        "ended": None if report.ended is None else {"reason": report.ended.reason, "message": report.ended.message},
        "planned_steps": report.planned_steps,
        "report": report.summary(),
        "actors": [_actor(view, name, now_ns) for name in sorted(view.vitals.latest)],
        "queues": {
            name: {
                "n_pending": info.n_pending,
                "n_ack_pending": info.n_ack_pending,
                "n_redelivered": info.n_redelivered,
                "max_ack_pending": info.max_ack_pending,
            }
            for name, info in view.queues.items()
        },
        "rates": {
            "engine_tokens_per_s": rounded(view.vitals.total_rate("engine", "n_tokens"), 1),
            "trainer_tokens_per_s": rounded(view.vitals.total_rate("trainer", "n_tokens"), 1),
            "episodes_per_s": rounded(view.vitals.total_rate("recorder", "n_archived"), 2),
        },
        "ages": {"open_s": opened, "queued_s": queued},
        "cost": cost(report),
    }


def _actor(view: View, name: str, now_ns: int) -> dict[str, Any]:
    beat = view.vitals.latest[name]
    age_s = max(0.0, (now_ns - beat.at_ns) / 1e9)
    return {
        "id": name,
        "kind": beat.actor,
        "state": beat.state if age_s <= LOST_S else "silent",
        "waiting_for": beat.waiting_for,
        "version": None if beat.version is None else str(beat.version),
        "pid": beat.pid,
        "age_s": round(age_s, 1),
        "gauges": dict(beat.gauges),
    }


def cost(report: RunReport) -> dict[str, Any]:
    """What was spent, in tokens, model calls and tool calls; per correct training episode where there is one."""
    tokens = report.tokens()
    sums = report.accounts.purposes["train"].sums if "train" in report.accounts.purposes else EpisodeSums()
    wasted = tokens["discarded"] + tokens["masked_stale"] + tokens["dead_lineage"]
    return {
        "n_tokens_generated": tokens["generated"] + tokens["evaluation"],
        "tokens_per_correct": rounded(tokens["generated"] / sums.n_correct, 1) if sums.n_correct else None,
        "tool_calls_per_correct": rounded((sums.n_searches + sums.n_reads) / sums.n_correct, 2) if sums.n_correct else None,
        "wasted_share": rounded(wasted / tokens["generated"]) if tokens["generated"] else None,
    }


def points(report: RunReport, after: int) -> list[dict[str, Any]]:
    """One point for every step above `after`: means over the episodes that it closed over, and what the trainer said."""
    windows = report.journal.windows()
    return [_point(report, step, windows[step.step]) for step in report.journal.in_order if step.step > after]


def _point(report: RunReport, step: StepTrained, window: Window) -> dict[str, Any]:
    sums, n = report.step_sums(step.step), sum(step.staleness.values())
    return {
        "step": step.step,
        "at_ns": step.at_ns,
        "n": sums.n,
        "reward": rounded(sums.mean(sums.reward)),
        "accuracy": rounded(sums.accuracy),
        "searches_per_episode": rounded(sums.mean(sums.n_searches)),
        "reads_per_episode": rounded(sums.mean(sums.n_reads)),
        "turns_per_episode": rounded(sums.mean(sums.n_turns)),
        "tokens_per_episode": rounded(sums.mean(sums.n_tokens)),
        "staleness_mean": rounded(sum(age * k for age, k in step.staleness.items()) / n) if n else None,
        "staleness_max": max(step.staleness, default=0),
        "tokens_trained": step.n_tokens_trained,
        "tokens_masked_stale": step.n_tokens_masked_stale,
        "tokens_discarded": step.n_tokens_discarded,
        "empty": step.empty,
        "train_s": rounded(step.elapsed_ns / 1e9, 3),
        "idle_s": rounded(window.idle_ns / 1e9, 3),
        "span_s": rounded(window.span_ns / 1e9, 3),
        "policy": str(Version(lineage=step.lineage, step=step.step + 1)),
        "metrics": step.metrics,
    }


def moment(event: Event | None) -> dict[str, Any] | None:
    """A fact of POLICY as a mark of the timeline."""
    match event:
        case TrainerClaimed():
            return {"kind": "claimed", "version": f"{event.lineage}.{event.step}", "at_ns": event.at_ns}
        case PolicyPublished():
            return {"kind": "published", "version": str(event.version), "at_ns": event.at_ns}
        case CheckpointCommitted():
            return {"kind": "checkpoint", "version": f"{event.lineage}.{event.step}", "at_ns": event.at_ns}
        case _:
            return None


def stream_figures(infos: dict[str, StreamInfo]) -> dict[str, Any]:
    """How full the streams are."""
    return {
        name: {"n_messages": info.n_messages, "n_bytes": info.n_bytes, "max_bytes": info.max_bytes, "last": info.last_sequence}
        for name, info in infos.items()
    }
