"""`asearch audit RUN`: recompute every term of the accounting from streams and checkpoint, with code of its own.

Reads through the bus, decodes with `schemas`, and imports nothing else of ours but the files that say where a run's broker
is; an import contract forbids `asearch`.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from actors.cli.auditing.evidence import gather
from actors.cli.auditing.findings import audit as audit_evidence
from actors.cli.auditing.findings import compare_result
from actors.cli.auditing.problems import Problems
from actors.runtime.jetstream import connect
from actors.runtime.jsapi import STREAM_MISSING, ApiRefusal
from actors.runtime.platform import SystemPlatform
from actors.runtime.workspace import Workspace

RUN_FILE = "run.json"
RESULT_FILE = "result.json"
FIRST = ("requested", "graded", "dropped", "dead", "in_flight")
SECOND = ("graded", "counted", "discarded", "queued")


class _RunFile(msgspec.Struct):
    run: str


class CannotAuditError(click.ClickException):
    """There is nothing to audit."""

    exit_code = 2


@click.command("audit")
@click.argument("run")
@click.option(
    "--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
@click.option("--json", "as_json", is_flag=True, help="Print all terms and problems as one JSON line at the end.")
def audit(run: str, root: Path, as_json: bool) -> None:
    """Check the accounting of RUN. Exit status: 0 agrees, 1 disagrees, 2 there is no such run."""
    run_dir = root / run
    name = _name_of(run_dir)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_audit(Workspace(root), name, run_dir))
    click.echo(table_of(result), err=as_json)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    sys.exit(0 if result["ok"] else 1)


def _name_of(run_dir: Path) -> str:
    try:
        return msgspec.json.decode((run_dir / RUN_FILE).read_bytes(), type=_RunFile).run
    except FileNotFoundError as error:
        known = sorted(path.parent.name for path in run_dir.parent.glob(f"*/{RUN_FILE}"))
        raise CannotAuditError(
            f"there is no run '{run_dir.name}' in {run_dir.parent}; known: {', '.join(known) or 'none'}"
        ) from error
    except (OSError, msgspec.DecodeError) as error:
        raise CannotAuditError(f"{run_dir / RUN_FILE} cannot be read: {error}") from error


async def _audit(workspace: Workspace, run: str, run_dir: Path) -> dict[str, Any]:
    """Audit through the workspace's broker; one that does not run is started on its store for the time of the audit."""
    platform = SystemPlatform()
    url, started = await workspace.broker(platform)
    try:
        bus = await connect(url, run, "audit", platform)
        try:
            problems = Problems()
            evidence = await gather(bus, run_dir, problems)
            result = audit_evidence(evidence, problems)
            compare_result(result, run_dir / RESULT_FILE, evidence, problems)
        finally:
            await bus.close()
    except ApiRefusal as error:
        if error.err_code != STREAM_MISSING:
            raise
        raise CannotAuditError(f"run '{run}' has no streams in the broker's store: its actors never started") from error
    finally:
        await workspace.release(started, run)
    return {"run": run, "ok": not problems.counts, **result, "problems": problems.lines()}


def table_of(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"audit of run {result['run']}: {'ended (' + result['ended'] + ')' if result['ended'] else 'not ended'}"]
    for purpose, terms in {**result["accounting_by_purpose"], "all": result["accounting"]}.items():
        lines.append(f"  {purpose:<10} {_identity(FIRST, terms)}")
        lines.append(f"  {'':<10} {_identity(SECOND, terms)}")
    checkpoint, staleness, tokens = result["checkpoint"], result["staleness"], result["tokens"]
    if checkpoint:
        settled = f"{checkpoint['counted']} counted, {checkpoint['discarded']} discarded, {checkpoint['ungraded']} ungraded"
        lines.append(f"  checkpoint {checkpoint['name']}: {settled}, watermark {checkpoint['watermark']}")
    else:
        lines.append("  checkpoint none")
    lines.append(
        f"  steps      {result['steps']}, of these {result['empty_steps']} empty; policy version {result['policy_version']}"
    )
    bound = f"bound {result['eta']} under the rule {result['rule']}"
    lines.append(f"  staleness  at most {staleness['max']} steps, {staleness['mean']} in the mean; {bound}")
    lines.append("  tokens     " + ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in tokens.items()))
    sources = result["outcomes_from"]
    late = f"; {sources['n_late']} late second outcomes, void" if sources["n_late"] else ""
    kept = f"{sources['n_both']} in both alike"
    lines.append(
        f"  outcomes   {sources['n_stream']} from the stream, {sources['n_archive']} purged ones from the archive, {kept}{late}"
    )
    lines.extend(f"  {name:<10} {reasons}" for name, reasons in _reasons(result["reasons"]))
    lines.extend(f"  PROBLEM    {line}" for line in result["problems"])
    lines.append("ok: streams, checkpoint and result agree" if result["ok"] else f"NOT OK: {len(result['problems'])} problems")
    return "\n".join(lines)


def _identity(names: tuple[str, ...], terms: dict[str, int]) -> str:
    parts = [f"{name.replace('_', ' ')} {terms[name]}" for name in names]
    return f"{parts[0]} = {' + '.join(parts[1:])}"


def _reasons(reasons: dict[str, dict[str, int]]) -> list[tuple[str, str]]:
    named = {name: reasons[name] for name in ("dropped", "dead", "discarded") if reasons[name]}
    return [(name, ", ".join(f"{reason} {n}" for reason, n in counts.items())) for name, counts in named.items()]
