"""What `asearch watch` shows at one moment, as plain values: by stage, by actor, the slowest episodes, the accounting."""

from collections import Counter

import msgspec

from actors.runtime.following import LOST_S, View
from actors.runtime.roster import actors_of
from actors.runtime.run_files import RunFile
from asearch.traces.rows import STAGES, EpisodeRow, RowTable
from asearch.traces.stages import OPEN, StageTable, Standing

N_SLOWEST = 8


class StageFigures(msgspec.Struct, frozen=True):
    """A stage. `per_s`: episodes a second that left an open stage, or came to a final one, over the last 30 s."""

    n: int
    oldest_s: float | None
    per_s: float | None


class SlowEpisode(msgspec.Struct, frozen=True, kw_only=True):
    """An open episode."""

    episode: str
    stage: str
    open_s: float
    """Since it was asked for."""
    stage_s: float | None
    """Since it came to its stage; None where that is not known."""
    turn: int
    tool: str
    argument: str
    driver: str
    question: str


class ActorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """An actor. `state` is that of its heartbeat, `silent` where none was heard for some seconds."""

    state: str
    version: str
    beat_s: float | None
    waiting_for: str = ""


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a run. As JSON it is a line of `asearch watch --json`."""

    run: str
    state: str
    """`live`, `preparing`, `ended` or `crashed`."""
    phase: str = ""
    at_ns: int
    step: int | None = None
    planned_steps: int
    stages: dict[str, StageFigures]
    slowest: list[SlowEpisode] = []
    actors: dict[str, ActorFigures] = {}
    accounting: dict[str, int] | None = None
    broken: list[str] = []
    """Identities of the accounting that do not hold, in words."""
    ended: str | None = None
    note: str = ""
    page: str = ""


def watched(content: RunFile, state: str, view: View, now_ns: int, *, note: str = "", page: str = "") -> Watched:
    """This moment of a run that is followed, or was caught up with."""
    report, stages = view.report, view.stages or StageTable()
    live = state == "live"
    ended = report.ended
    return Watched(
        run=content.run,
        state=state,
        phase=report.phase,
        at_ns=now_ns,
        step=len(report.journal.steps),
        planned_steps=report.planned_steps or content.settings.run.steps,
        stages=_stages(stages, now_ns, live=live),
        slowest=[_slow(row, standing, now_ns) for row, standing in stages.slowest(N_SLOWEST)],
        actors=_actors(content, view, now_ns) if live else {},
        accounting=report.accounts.all_terms(),
        broken=report.accounts.broken(),
        ended=None if ended is None else ended.reason,
        note=note,
        page=page,
    )


def watched_rows(content: RunFile, state: str, rows: RowTable, now_ns: int, note: str) -> Watched:
    """The last moment of a run whose archive alone is left."""
    counts = Counter(row.stage for row in rows)
    return Watched(
        run=content.run,
        state=state,
        at_ns=now_ns,
        planned_steps=content.settings.run.steps,
        stages={stage: StageFigures(counts[stage], None, None) for stage in STAGES},
        note=note,
    )


def _stages(table: StageTable, now_ns: int, *, live: bool) -> dict[str, StageFigures]:
    found: dict[str, StageFigures] = {}
    for stage in STAGES:
        oldest_ns = table.oldest_ns(stage) if stage in OPEN else None
        oldest_s = None if oldest_ns is None else _seconds(oldest_ns, now_ns)
        found[stage] = StageFigures(table.counts[stage], oldest_s, round(table.per_s(stage, now_ns), 3) if live else None)
    return found


def _slow(row: EpisodeRow, standing: Standing, now_ns: int) -> SlowEpisode:
    return SlowEpisode(
        episode=row.episode,
        stage=row.stage,
        open_s=_seconds(row.requested_ns, now_ns),
        stage_s=_seconds(standing.since_ns, now_ns) if standing.since_ns else None,
        turn=standing.turn,
        tool=standing.tool if row.stage == "tool" else "",
        argument=standing.argument if row.stage == "tool" else "",
        driver=row.driver,
        question=row.question,
    )


def _actors(content: RunFile, view: View, now_ns: int) -> dict[str, ActorFigures]:
    kept = view.kept_engines()
    expected = actors_of(content.settings, None if kept is None else sorted(kept))
    names = dict.fromkeys([*(name for _, name in expected), *view.vitals.latest])
    found: dict[str, ActorFigures] = {}
    for name in names:
        beat = view.vitals.latest.get(name)
        if beat is None:
            found[name] = ActorFigures(state="silent", version="", beat_s=None)
            continue
        age_s = _seconds(beat.at_ns, now_ns)
        found[name] = ActorFigures(
            state=beat.state if age_s <= LOST_S else "silent",
            version="" if beat.version is None else str(beat.version),
            beat_s=age_s,
            waiting_for=beat.waiting_for,
        )
    return found


def _seconds(since_ns: int, now_ns: int) -> float:
    return round(max(0.0, (now_ns - since_ns) / 1e9), 2)
