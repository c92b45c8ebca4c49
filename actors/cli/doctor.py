"""`asearch doctor`: what is wrong with this machine and this folder of runs, each with its fix."""

import asyncio
import importlib
import inspect
import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from actors.cli.checks.finding import IMPORT_TIMEOUT_S, Finding, Subject

CHECKS = (
    "limits.python",
    "limits.open_files",
    "packages.versions",
    "imports.imports",
    "packages.extras",
    "sglang.environment",
    "auxiliary.endpoints",
    "broker.program",
    "broker.running",
    "broker.store",
    "ports.broker",
    "ports.page",
    "disks.disks",
    "clocks.steadiness",
    "clocks.files",
    "clocks.broker",
    "permissions.writable",
    "permissions.weights",
    "permissions.secrets",
    "runs.run_files",
    "runs.orphans",
    "runs.left_weights",
    "runs.models",
    "streams.streams",
)
"""Module and function, in the order of the report. A module is imported inside its check: a broken package breaks that one."""
CHECK_TIMEOUT_S = 20.0
COLOURS = {"ok": "green", "info": "blue", "warning": "yellow", "failed": "red"}


@click.command("doctor")
@click.option("--run", "run", help="Look at this run alone; all runs of the folder unless given.")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port that the broker is to have; 0: any.")
@click.option("--page-port", type=click.IntRange(0, 65535), default=0, help="Port that the page is to have; 0: any.")
@click.option("--quick", is_flag=True, help="Do not load torch and Megatron.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line: ok, checks [name, status, detail, fix].")
def doctor(run: str | None, root: Path, port: int, page_port: int, quick: bool, as_json: bool) -> None:
    """Examine this machine and the folder of runs; changes nothing and needs no run.

    Exit status: 0 nothing failed (there may be warnings), 1 something failed.
    """
    subject = Subject(root, run, port, page_port, IMPORT_TIMEOUT_S)
    findings = asyncio.run(examine(subject, [name for name in CHECKS if not (quick and name.startswith("imports."))]))
    ok = all(finding.status != "failed" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": ok, "checks": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            _show(finding)
        click.echo(_summary(findings))
    sys.exit(0 if ok else 1)


async def examine(subject: Subject, names: list[str]) -> list[Finding]:
    """All findings, in the order of the names. A check that fails by itself is a finding too."""
    async with asyncio.TaskGroup() as tasks:
        # The slow one waits for another process meanwhile.
        under_way = {name: tasks.create_task(_checked(subject, name), name=name) for name in names}
    return [finding for name in names for finding in under_way[name].result()]


async def _checked(subject: Subject, name: str) -> list[Finding]:
    module, _, function = name.partition(".")
    limit_s = subject.import_timeout_s + CHECK_TIMEOUT_S if module == "imports" else CHECK_TIMEOUT_S
    try:
        async with asyncio.timeout(limit_s):
            check = getattr(importlib.import_module(f"actors.cli.checks.{module}"), function)
            if inspect.iscoroutinefunction(check):
                return await check(subject)
            return await asyncio.to_thread(check, subject)
    except TimeoutError:
        return [
            Finding(name, "failed", f"this check did not end within {limit_s:g} s", "look at the file systems: does `ls` hang?")
        ]
    except ImportError as error:
        return [Finding(name, "failed", f"what this check needs does not load: {error}", "just setup")]
    except Exception as error:
        return [Finding(name, "failed", f"this check failed itself: {type(error).__name__}: {error}", "please report it")]


def _show(finding: Finding) -> None:
    word = "FAILED" if finding.status == "failed" else finding.status
    click.echo(f"{click.style(f'{word:<8}', fg=COLOURS[finding.status])} {finding.name:<20} {printable(finding.detail)}")
    if finding.fix:
        click.echo(f"{'':<8} {'':<20} fix: {printable(finding.fix)}")


def _summary(findings: list[Finding]) -> str:
    n_failed, n_warnings = (sum(finding.status == status for finding in findings) for status in ("failed", "warning"))
    return f"{len(findings)} checks: {n_failed} failed, {n_warnings} warnings"


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
