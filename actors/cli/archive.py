"""`asearch archive RUN`: write a run's records as Parquet files into its folder."""

import asyncio
import signal
import sys
from pathlib import Path

import click
import msgspec
import uvloop

from actors.cli import looking
from actors.runtime.parquet_archive import ArchiveReport, write_archive
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import open_run
from actors.runtime.workspace import Workspace
from asearch import parent
from asearch.traces.tables import need_parquet

_PATH = click.Path(path_type=Path)


@click.command("archive")
@looking.run_argument
@click.option("--runs", "root", type=_PATH, default=Path("runs"), show_default=True, help="Folder of the runs.")
@click.option("--out", type=_PATH, help="Folder of the files; the run's own unless given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line: rows, accounting, files.")
@click.option("--die-with-parent", is_flag=True, hidden=True)
def archive(run: str | None, root: Path, out: Path | None, as_json: bool, die_with_parent: bool) -> None:
    """Write episodes, turns, segments and steps of RUN (the live one, else the newest) as Parquet files.

    RUN may be live, ended or killed; its ended episodes are written. Files that are there are replaced when all is written.
    Exit status: 0 all is written, 1 something could not be read and is left out, 2 there is no such run or no pyarrow.
    """
    if die_with_parent:
        parent.die_with_parent(signal.SIGKILL)
    need_parquet()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(_archive(Workspace(root), run, out))
    click.echo(msgspec.json.encode(report).decode() if as_json else text_of(report))
    sys.exit(1 if report.problems else 0)


async def _archive(workspace: Workspace, run: str | None, out: Path | None) -> ArchiveReport:
    platform = SystemPlatform()
    async with open_run(workspace, run, platform, f"archive-{platform.new_id()[:6]}") as source:
        folder = source.run_dir if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        return await write_archive(source, folder)


def text_of(report: ArchiveReport) -> str:
    """The report for people."""
    states = {
        "ended": f"has ended ({report.reason})",
        "live": "is live: these are the episodes that have ended so far",
        "unfinished": "was stopped before its end: these are the episodes that had ended",
        "unknown": "has no broker store any more: verdicts and steps are not known",
    }
    terms = report.accounting
    lines = [
        f"run '{report.run}' {states[report.state]}",
        "  rows       " + ", ".join(f"{n:,} {name}" for name, n in report.rows.items()),
        "  episodes   " + ", ".join(f"{n:,} {term}" for term, n in terms.items()),
    ]
    if report.n_without_segments:
        why = report.missing_model or "facts or payloads are missing"
        lines.append(f"  segments   {report.n_without_segments} graded episodes have none: {why}")
    lines += [f"  PROBLEM    {problem}" for problem in report.problems]
    lines += [f"  {path}" for path in report.files]
    return "\n".join(lines)
