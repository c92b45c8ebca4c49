"""Streams of the runs in the broker that runs: how full they are, and what was refused."""

import asyncio
from typing import Any

from actors.cli.checks.broker_state import port_of, processes
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.nats_line import open_line
from actors.cli.checks.runs import runs_of
from actors.runtime.broker import HOST
from actors.runtime.room import ADMIT_SHARE, NEVER_PURGED
from schemas.events import EventRefused, EventRequeued
from schemas.topology import TOPOLOGY, broker_stream, fact_of

TIMEOUT_S = 10.0
NEAR_SHARE = 0.6
"""Share of a stream's bound from which it is told."""
MAX_RUNS = 20
"""Of so many runs, the newest, the streams are looked at."""


async def streams(subject: Subject) -> list[Finding]:
    """Every stream is below the share of its bound at which admission stops, and nothing lies in DEAD."""
    port = port_of(subject)
    if port is None or not processes(subject):
        return [Finding("streams", "info", "the broker does not run, so they were not looked at")]
    runs = [content.run for content, _ in runs_of(subject)[-MAX_RUNS:]]
    try:
        line = await open_line(HOST, port)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                held = {
                    (run, row.name): await line.stream(broker_stream(run, row.name), ">" if row.name == "dead" else "")
                    for run in runs
                    for row in TOPOLOGY.streams
                }
        finally:
            line.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return [
            Finding("streams", "failed", f"the broker does not tell them: {str(error) or 'timeout'}", subject.command("down"))
        ]
    infos = {name: answer[0] for name, answer in held.items() if answer is not None}
    return [*_full(subject, infos), *_dead(subject, infos)]


def _full(subject: Subject, infos: dict[tuple[str, str], dict[str, Any]]) -> list[Finding]:
    found: list[Finding] = []
    for (run, name), info in infos.items():
        bound = int(info["config"].get("max_bytes", -1))
        share = int(info["state"]["bytes"]) / bound if bound > 0 else 0.0
        if share < NEAR_SHARE:
            continue
        detail = f"{name.upper()} of run {run} is at {share:.0%} of its {bound:,} bytes; admission stops at {ADMIT_SHARE:.0%}"
        found.append(Finding("streams", "failed" if share >= ADMIT_SHARE else "warning", detail, _relief(subject, run, name)))
    n_runs = len({run for run, _ in infos})
    return found or [Finding("streams", "ok", f"those of {n_runs} runs are below {NEAR_SHARE:.0%} of their bounds")]


def _relief(subject: Subject, run: str, stream: str) -> str:
    if stream in NEVER_PURGED:
        return f"asearch train RECIPE --model FOLDER (a new run from the last weights of {run}: {stream.upper()} is never purged)"
    if stream == "dead":
        return subject.command(f"dead list {run}")
    return f"-s checkpoint.every_steps=N with a smaller N, and look at {subject.root}/{run}/logs/recorder-0.log, which purges"


def _dead(subject: Subject, infos: dict[tuple[str, str], dict[str, Any]]) -> list[Finding]:
    """Messages that were refused and not appended again."""
    found: list[Finding] = []
    for (run, name), info in infos.items():
        subjects = info["state"].get("subjects") or {}
        n_refused, n_requeued = (_count(subjects, event) for event in (EventRefused, EventRequeued))
        if name == "dead" and n_refused > n_requeued:
            detail = f"{n_refused - n_requeued} refused messages in run {run}"
            found.append(Finding("dead letters", "warning", detail, subject.command(f"dead list {run}")))
    return found or [Finding("dead letters", "ok", "none")]


def _count(subjects: dict[str, int], event: type[EventRefused] | type[EventRequeued]) -> int:
    fact = fact_of(event)
    part = f".{fact.stream}.{fact.noun}.{fact.verb}."
    return sum(n for subject, n in subjects.items() if part in subject)
