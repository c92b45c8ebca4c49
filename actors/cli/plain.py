"""What a run says in plain text: its phase, a line for logs, and the summary at its end."""

from collections.abc import Mapping
from typing import cast

from actors.cli.marks import clock, histogram, identity_lines, number, percent
from actors.runtime.following import Vitals
from asearch.evaluation.accounting import TRAIN, Ends
from asearch.evaluation.report import RunReport

EVALUATED = ("before", "after")


def phase_of(report: RunReport) -> str:
    """What a run is doing."""
    return report.phase


def progress_of(report: RunReport) -> str:
    """How far it has come: `step 12/40`, in an evaluation also `120 questions done`, at the end also why it ended."""
    planned = f"/{report.planned_steps}" if report.planned_steps else ""
    text = f"step {len(report.journal.steps)}{planned}"
    if report.ended is not None:
        return f"{text}, {report.ended.reason}"
    newest = report.newest_group
    ends = report.accounts.labels.get(newest.label) if newest is not None and newest.purpose != TRAIN else None
    return f"{text}, {ends.requested - len(ends.open)} questions done" if ends else text


def plain_line(report: RunReport, vitals: Vitals, elapsed_s: float) -> str:
    """One line for a log."""
    accounts, steps = report.accounts, report.journal.in_order
    parts = [f"{clock(elapsed_s):>7}  {phase_of(report)}, {progress_of(report)}"]
    if steps:
        sums = report.step_sums(steps[-1].step)
        parts.append(
            f"reward {number(sums.mean(sums.reward))} accuracy {number(sums.accuracy)} "
            f"searches/episode {number(sums.mean(sums.n_searches))}"
        )
        parts.append(f"trainer idle {percent(report.journal.idle_fraction())}, staleness max {report.staleness()['max']} steps")
    engine = vitals.total_rate("engine", "n_tokens")
    if engine is not None:
        parts.append(f"engine {number(engine, 0)} tokens/s")
    starting = (beat for _, beat in sorted(vitals.latest.items()) if beat.actor == "engine" and beat.state == "starting")
    parts.extend(f"{beat.actor_id} waits for {beat.waiting_for}" for beat in starting if beat.waiting_for)
    terms = accounts.all_terms()
    broken = accounts.broken()
    parts.append(
        f"episodes: {terms['requested']} requested, {terms['graded']} graded, {terms['in_flight']} in flight, "
        f"{terms['dropped']} dropped, {terms['dead']} dead; identities {'BROKEN: ' + '; '.join(broken) if broken else 'ok'}"
    )
    return " | ".join(parts)


def held_out_line(report: RunReport, label: str) -> str | None:
    """The result of an evaluation (searches and pages per episode), None where nothing was graded."""
    ends = report.accounts.labels.get(label, Ends())
    found = report.evaluation(label)
    if not ends.sums.n:
        return None
    low, high = cast("list[float]", found["ci95"])
    return (
        f"accuracy {number(ends.sums.accuracy)} [{low:.2f}, {high:.2f}], n {ends.sums.n}, "
        f"{number(ends.sums.mean(ends.sums.n_searches))} searches, {number(ends.sums.mean(ends.sums.n_reads))} pages each"
    )


def final_summary(report: RunReport, phases_s: Mapping[str, float]) -> str:
    """What a run came to: learning, asynchrony, accounting, and where its time went."""
    journal, tokens = report.journal, report.tokens()
    lines = [f"run {report.started.run if report.started else '-'}: {phase_of(report)}, {progress_of(report)}"]
    empty = sum(step.empty for step in journal.steps.values())
    if empty:
        lines[0] += f" ({empty} empty)"
    for label in EVALUATED:
        if (text := held_out_line(report, label)) is not None:
            lines.append(f"  held out, {label + ':':<7} {text}")
            lines.extend(_by_hop(report, label))
    lines.append(f"  trainer idle  {percent(journal.idle_fraction())} of the time from its first batch to its last step")
    rule = f"bound eta = {report.eta}, rule {report.rule}" if report.rule else ""
    lines.append(f"  staleness     {histogram(journal.staleness(), cells=4, most=9, ascii_only=True)}  (policy steps; {rule})")
    lines.append(
        f"  tokens        {tokens['generated']:,} generated, {tokens['trained']:,} trained, {tokens['masked_stale']:,} masked "
        f"as stale, {tokens['discarded']:,} in discarded groups, {tokens['queued']:,} not used"
    )
    lines.extend(f"  episodes      {line}" for line in identity_lines(report.accounts.all_terms(), width=120, ascii_only=True))
    lines.extend(f"  {ending + ':':<13} {text}" for ending, text in _reasons(report))
    if phases_s:
        lines.append("  time          " + ", ".join(f"{name} {value:.1f} s" for name, value in phases_s.items()))
    lines.extend(f"  BROKEN        {text}" for text in report.accounts.broken())
    return "\n".join(lines)


def _by_hop(report: RunReport, label: str) -> list[str]:
    by_hop = report.accounts.labels[label].by_hop
    parts = [f"{hops} hops {number(sums.accuracy)} ({sums.n})" for hops, sums in sorted(by_hop.items())]
    return ["                    " + ", ".join(parts)] if parts else []


def _reasons(report: RunReport) -> list[tuple[str, str]]:
    reasons = report.reasons()
    return [
        (ending, ", ".join(f"{reason} {n}" for reason, n in reasons[ending].items()))
        for ending in ("dropped", "dead", "discarded")
        if reasons[ending]
    ]
