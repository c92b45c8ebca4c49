"""The Parquet files of a run: written from all that is recorded of it, whatever state it is in."""

from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from actors.runtime.ended_episodes import EndedEpisodes
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import is_live
from asearch.traces.ended import EndedEpisode, episode_row, segment_rows, step_row, turn_rows
from asearch.traces.parquet import ParquetFiles
from asearch.traces.rows import EpisodeRow
from asearch.traces.tables import TABLES
from schemas.events import RunEnded

TERMS = ("graded", "dropped", "dead", "counted", "discarded", "queued")
STATES = ("ended", "live", "unfinished", "unknown")
"""The run is over; it goes on; its processes are gone and it has no end; the broker's store is gone."""


class ArchiveReport(msgspec.Struct, kw_only=True):
    """What was written."""

    run: str
    state: str
    """One of STATES."""
    reason: str = ""
    """Why it ended."""
    rows: dict[str, int] = {}
    """By table."""
    accounting: dict[str, int] = {}
    """The terms over all rows of episodes; `requested` where PLAN is there."""
    accounting_by_purpose: dict[str, dict[str, int]] = {}
    n_without_segments: int = 0
    """Graded episodes that could not be folded."""
    missing_model: str = ""
    problems: list[str] = []
    files: list[str] = []


async def state_of(source: RunSource) -> tuple[str, str]:
    """The state of a run, one of STATES, and why it ended."""
    if source.bus is None:
        return "unknown", ""
    found = await source.bus.get_last(RunEnded, source.run)
    if found is not None and isinstance(found.event, RunEnded):
        return "ended", found.event.reason
    return ("live" if is_live(source.content) else "unfinished"), ""


async def write_archive(
    source: RunSource, folder: Path, *, say: Callable[[int], None] | None = None, **limits: int
) -> ArchiveReport:
    """Write all tables into a folder, in place of those that are there; `say` hears how many episodes are written.

    Raises ConfigError without pyarrow, SecondWriterError, BusError, OSError; then nothing has changed.
    """
    state, reason = await state_of(source)
    report = ArchiveReport(run=source.run, state=state, reason=reason)
    episodes = EndedEpisodes(source)
    terms: dict[str, Counter[str]] = {}
    about = {"asearch.run": source.run, "asearch.state": state}
    with ParquetFiles(folder, list(TABLES.values()), about, **limits) as files:
        async with aclosing(episodes.read()) as reader:
            async for ended in reader:
                _add(files, source.run, ended)
                _count(terms.setdefault(ended.row.purpose, Counter()), ended.row)
                report.n_without_segments += ended.row.stage == "graded" and ended.folded.state is None
                if say is not None:
                    say(files.writers["episodes"].n_rows)
        for event, abandoned in episodes.steps:
            files.writers["steps"].add(step_row(event, abandoned=abandoned))
    report.rows = {name: writer.n_rows for name, writer in files.writers.items()}
    report.files = [str(path) for path in files.files]
    report.problems = episodes.problems
    report.missing_model = source.missing_model
    _account(report, terms, await episodes.n_requested())
    return report


def _add(files: ParquetFiles, run: str, ended: EndedEpisode) -> None:
    files.writers["episodes"].add(episode_row(run, ended))
    for row in turn_rows(ended):
        files.writers["turns"].add(row)
    for row in segment_rows(ended):
        files.writers["segments"].add(row)


def _count(terms: Counter[str], row: EpisodeRow) -> None:
    terms[row.stage] += 1
    if row.fate:
        terms[row.fate] += 1


def _account(report: ArchiveReport, terms: dict[str, Counter[str]], requested: Counter[str] | None) -> None:
    for purpose, counts in sorted(terms.items()):
        found: dict[str, Any] = {} if requested is None else {"requested": requested[purpose]}
        report.accounting_by_purpose[purpose] = {**found, **{term: counts[term] for term in TERMS}}
    whole: Counter[str] = Counter()
    for counts in report.accounting_by_purpose.values():
        whole.update(counts)
    report.accounting = {
        **({} if requested is None else {"requested": requested.total()}),
        **{term: whole[term] for term in TERMS},
    }
