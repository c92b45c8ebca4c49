"""The whole audit of the evidence, and what it says."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from actors.cli.auditing.closing import close
from actors.cli.auditing.episodes import check_episodes, check_groups, terms_of
from actors.cli.auditing.evidence import Evidence
from actors.cli.auditing.journal import check_checkpoint, check_tokens, check_verdicts, check_versions, members, standing_steps
from actors.cli.auditing.problems import Problems
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeGraded, EpisodeRequested, PolicyPublished, StepTrained

TERMS = ("requested", "graded", "dropped", "dead", "in_flight", "counted", "discarded", "queued")
COMPARED = ("accounting", "accounting_by_purpose", "steps", "empty_steps", "policy_version", "staleness", "tokens", "reasons")
"""What a run says of itself at its end, in `result.json`, and an audit says too."""


def audit(evidence: Evidence, problems: Problems) -> dict[str, Any]:
    """Check everything; the terms as the audit counts them."""
    steps = standing_steps(evidence)
    check_episodes(evidence, problems)
    check_versions(evidence, problems)
    if evidence.rules is not None:
        closed = close(evidence.outcomes, evidence.rules)
        check_groups(evidence, evidence.rules, closed.discarded, problems)
        check_verdicts(evidence, closed.steps, problems)
        check_tokens(steps, closed.steps, evidence.rules, problems)
        check_checkpoint(evidence, steps, closed.steps, problems)
    terms = _terms(evidence, steps, problems)
    return {
        "ended": evidence.ended.reason if evidence.ended else None,
        "accounting": {term: sum(each[term] for each in terms.values()) for term in TERMS},
        "accounting_by_purpose": terms,
        "checkpoint": _checkpoint(evidence),
        "reasons": _reasons(evidence, steps),
        **_training(evidence, steps),
        "eta": evidence.rules.eta if evidence.rules else None,
        "rule": evidence.rules.rule if evidence.rules else None,
        "refused": evidence.n_refused,
        "outcomes_from": asdict(evidence.sources),
    }


def _terms(evidence: Evidence, steps: list[StepTrained], problems: Problems) -> dict[str, dict[str, int]]:
    judged: dict[str, bool] = {}
    said: Counter[bool] = Counter()
    for step in steps:
        for verdict in step.verdicts:
            problems.unless(verdict.group not in judged, "two_verdicts", f"group {verdict.group} was judged by two steps")
            judged[verdict.group] = verdict.reason is None
            said[verdict.reason is None] += verdict.episodes
    purposes = {event.purpose for _, event in evidence.plan if isinstance(event, EpisodeRequested)}
    purposes |= {outcome.purpose for _, outcome in evidence.outcomes}
    terms = {purpose: terms_of(evidence, purpose, judged) for purpose in sorted(purposes)}
    for purpose, each in terms.items():
        ended = each["graded"] + each["dropped"] + each["dead"] + each["in_flight"]
        settled = each["counted"] + each["discarded"] + each["queued"]
        problems.unless(
            each["requested"] == ended, "identity", f"{purpose}: {each['requested']} requested, {ended} accounted for"
        )
        problems.unless(each["graded"] == settled, "identity", f"{purpose}: {each['graded']} graded, {settled} accounted for")
    train = terms.get("train", dict.fromkeys(TERMS, 0))
    for term, kept in (("counted", True), ("discarded", False)):
        text = f"the trainer says {said[kept]} {term} episodes, OUTCOMES hold {train[term]} graded ones of those groups"
        problems.unless(said[kept] == train[term], "verdicts", text)
    return terms


def _checkpoint(evidence: Evidence) -> dict[str, Any] | None:
    if evidence.checkpoint is None:
        return None
    name, checkpoint = evidence.checkpoint
    ledger = checkpoint.ledger
    return {
        "name": name,
        "lineage": checkpoint.lineage,
        "step": checkpoint.step,
        "watermark": ledger.watermark,
        "counted": len(members(ledger.counted)),
        "discarded": sum(len(members(intervals)) for intervals in ledger.discarded.values()),
        "ungraded": len(members(ledger.ungraded)),
    }


def _reasons(evidence: Evidence, steps: list[StepTrained]) -> dict[str, dict[str, int]]:
    dropped = Counter(outcome.reason for _, outcome in evidence.outcomes if isinstance(outcome, EpisodeDropped))
    dead = Counter(outcome.reason for _, outcome in evidence.outcomes if isinstance(outcome, EpisodeDead))
    discarded: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for verdict in (verdict for step in steps for verdict in step.verdicts if verdict.reason):
        discarded[str(verdict.reason)] += verdict.episodes
        groups[str(verdict.reason)] += 1
    named = {"dropped": dropped, "dead": dead, "discarded": discarded, "discarded_groups": groups}
    return {name: dict(sorted(counts.items())) for name, counts in named.items()}


def _training(evidence: Evidence, steps: list[StepTrained]) -> dict[str, Any]:
    ages: Counter[int] = Counter()
    for step in steps:
        ages.update(step.staleness)
    n = ages.total()
    graded = [each for _, each in evidence.outcomes if isinstance(each, EpisodeGraded)]
    fate = {verdict.group: verdict.reason for step in steps for verdict in step.verdicts}
    train = [each for each in graded if each.purpose == "train"]
    versions = [event.version for _, event in evidence.policy if isinstance(event, PolicyPublished)]
    return {
        "steps": len(steps),
        "empty_steps": sum(step.empty for step in steps),
        "policy_version": str(max(versions)) if versions else None,
        "staleness": {
            "max": max((age for age in ages if ages[age]), default=0),
            "mean": round(sum(age * count for age, count in ages.items()) / n, 4) if n else 0.0,
            "histogram": {str(age): ages[age] for age in sorted(ages)},
        },
        "tokens": {
            "generated": sum(each.n_tokens_generated for each in train),
            "trained": sum(step.n_tokens_trained for step in steps),
            "masked_stale": sum(step.n_tokens_masked_stale for step in steps),
            "discarded": sum(each.n_tokens_generated for each in train if fate.get(each.group) is not None),
            "queued": sum(each.n_tokens_generated for each in train if each.group not in fate),
        },
    }


def compare_result(result: dict[str, Any], path: Path, evidence: Evidence, problems: Problems) -> None:
    """What the run said of itself at its end agrees with what the audit counts."""
    ended = evidence.ended
    try:
        if ended is None or path.stat().st_mtime_ns < ended.at_ns:
            return
        said = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError) as error:
        problems.add("result", f"{path} cannot be read: {error}")
        return
    for name in COMPARED:
        _compare_value(name, said.get(name), result[name], problems)


def _compare_value(name: str, said: Any, counted: Any, problems: Problems) -> None:
    if isinstance(said, dict) and isinstance(counted, dict):
        for key, value in counted.items():
            _compare_value(f"{name}.{key}", said.get(key), value, problems)
    elif said != counted:
        problems.add("result", f"the run's result says {name} = {said}, the audit counts {counted}")
