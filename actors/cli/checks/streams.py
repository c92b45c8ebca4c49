"""Streams of the runs in the broker that runs: how full they are, and what was refused."""

import asyncio
from typing import Any

from actors.cli.checks.broker_state import port_of, processes
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.nats_line import Line, open_line
from actors.runtime.broker import HOST
from actors.runtime.room import ADMIT_SHARE, NEVER_PURGED
from schemas.events import EventRefused, EventRequeued
from schemas.topology import TOPOLOGY, broker_stream, fact_of

TIMEOUT_S = 5.0
NEAR_SHARE = 0.6
"""Share of a stream's bound from which it is told."""
MAX_PAGES = 50


async def streams(subject: Subject) -> list[Finding]:
    """Every stream is below the share of its bound at which admission stops, and nothing lies in DEAD."""
    port = port_of(subject)
    if port is None or not processes(subject):
        return [Finding("streams", "info", "the broker does not run, so they were not looked at")]
    try:
        line = await open_line(HOST, port)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                held = await _held(line)
                return [*_full(subject, held), *await _dead(subject, line, held)]
        finally:
            line.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return [
            Finding("streams", "failed", f"the broker does not tell them: {str(error) or 'timeout'}", subject.command("down"))
        ]


async def _held(line: Line) -> dict[str, dict[str, Any]]:
    """All streams by the broker's name."""
    held: dict[str, dict[str, Any]] = {}
    for _ in range(MAX_PAGES):
        answer, _ = await line.ask("$JS.API.STREAM.LIST", {"offset": len(held)})
        page = answer.get("streams") or []
        held |= {str(each["config"]["name"]): each for each in page}
        if not page or len(held) >= int(answer.get("total", 0)):
            break
    return held


def _runs(subject: Subject, held: dict[str, dict[str, Any]]) -> list[str]:
    """Names of runs that have streams, or the one that was asked for."""
    suffix = "-plan"
    runs = [name.removeprefix("asearch-").removesuffix(suffix) for name in held if name.endswith(suffix)]
    return sorted(run for run in runs if subject.run in (None, run))


def _full(subject: Subject, held: dict[str, dict[str, Any]]) -> list[Finding]:
    found: list[Finding] = []
    runs = _runs(subject, held)
    for run in runs:
        for row in TOPOLOGY.streams:
            stream = held.get(broker_stream(run, row.name))
            bound = int(stream["config"].get("max_bytes", -1)) if stream else -1
            share = int(stream["state"]["bytes"]) / bound if stream and bound > 0 else 0.0
            if share < NEAR_SHARE:
                continue
            detail = (
                f"{row.name.upper()} of run {run} is at {share:.0%} of its {bound:,} bytes; admission stops at {ADMIT_SHARE:.0%}"
            )
            found.append(
                Finding("streams", "failed" if share >= ADMIT_SHARE else "warning", detail, _relief(subject, run, row.name))
            )
    return found or [Finding("streams", "ok", f"all of {len(runs)} runs are below {NEAR_SHARE:.0%} of their bounds")]


def _relief(subject: Subject, run: str, stream: str) -> str:
    if stream in NEVER_PURGED:
        return f"asearch train RECIPE --model FOLDER (a new run from the last weights of {run}: {stream.upper()} is never purged)"
    if stream == "dead":
        return subject.command(f"dead list {run}")
    return f"-s checkpoint.every_steps=N with a smaller N, and look at {subject.root}/{run}/logs/recorder-0.log, which purges"


async def _dead(subject: Subject, line: Line, held: dict[str, dict[str, Any]]) -> list[Finding]:
    """Messages that were refused and not appended again."""
    found: list[Finding] = []
    for run in _runs(subject, held):
        name = broker_stream(run, "dead")
        if not held.get(name, {}).get("state", {}).get("messages"):
            continue
        answer, _ = await line.ask(f"$JS.API.STREAM.INFO.{name}", {"subjects_filter": ">"})
        subjects = (answer.get("state") or {}).get("subjects") or {}
        n_refused, n_requeued = (_count(subjects, event) for event in (EventRefused, EventRequeued))
        if n_refused > n_requeued:
            detail = f"{n_refused - n_requeued} refused messages in run {run}"
            found.append(Finding("dead letters", "warning", detail, subject.command(f"dead list {run}")))
    return found or [Finding("dead letters", "ok", "none")]


def _count(subjects: dict[str, int], event: type[EventRefused] | type[EventRequeued]) -> int:
    fact = fact_of(event)
    part = f".{fact.stream}.{fact.noun}.{fact.verb}."
    return sum(n for subject, n in subjects.items() if part in subject)
