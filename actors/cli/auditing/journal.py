"""Checks of POLICY and the checkpoint: against themselves, against OUTCOMES, and against each other."""

from collections.abc import Iterable

from actors.cli.auditing.closing import Judged
from actors.cli.auditing.evidence import Checkpoint, Evidence, Rules
from actors.cli.auditing.problems import Problems
from schemas.events import CheckpointCommitted, PolicyPublished, StepTrained, TrainerClaimed
from schemas.records import Interval, Version


def standing_steps(evidence: Evidence) -> list[StepTrained]:
    """The steps that no later claim made void, in order."""
    steps: dict[int, StepTrained] = {}
    for _, event in evidence.policy:
        if isinstance(event, TrainerClaimed):
            steps = {number: step for number, step in steps.items() if number < event.step}
        elif isinstance(event, StepTrained):
            steps[event.step] = event
    return [steps[number] for number in sorted(steps)]


def check_versions(evidence: Evidence, problems: Problems) -> None:
    """Claims, steps and publications follow each other without a gap, versions only grow."""
    lineage, step, saved = 0, 0, -1
    newest: Version | None = None
    published_of_lineage = False
    for _, event in evidence.policy:
        if isinstance(event, TrainerClaimed):
            text = f"lineage {event.lineage} was claimed after {lineage}"
            problems.unless(event.lineage > lineage, "lineage", text)
            lineage, step, saved, published_of_lineage = event.lineage, event.step, -1, False
        elif isinstance(event, StepTrained):
            here = (event.lineage, event.step)
            problems.unless(here == (lineage, step), "step_order", f"step {here} was trained where {(lineage, step)} was due")
            step = event.step + 1
        elif isinstance(event, PolicyPublished):
            text = f"version {event.version} was published after {newest}"
            problems.unless(newest is None or event.version > newest, "version_order", text)
            due = Version(lineage=lineage, step=step)
            problems.unless(event.version == due, "version_order", f"version {event.version} was published at {due}")
            parent = newest if published_of_lineage else None
            problems.unless(event.parent == parent, "parent", f"version {event.version} names the parent {event.parent}")
            newest, published_of_lineage = event.version, True
        elif isinstance(event, CheckpointCommitted):
            # It is written while training goes on: later steps may be in the journal before it.
            holds = event.lineage == lineage and saved < event.step <= step
            text = f"checkpoint {event.lineage}.{event.step} was committed at {lineage}.{step} after that of step {saved}"
            problems.unless(holds, "checkpoint_order", text)
            saved = event.step


def check_verdicts(evidence: Evidence, derived: list[list[Judged]], problems: Problems) -> None:
    """What the trainer says that became of a group is what OUTCOMES and the rules say, in every step it ever took."""
    for step in (event for _, event in evidence.policy if isinstance(event, StepTrained)):
        said = [(verdict.group, verdict.reason, verdict.episodes) for verdict in step.verdicts]
        if step.step >= len(derived):
            problems.add("verdicts", f"step {step.step} was trained, but OUTCOMES do not complete it")
            continue
        told = [(each.group, each.reason, len(each.graded)) for each in derived[step.step]]
        for verdict in [each for each in said if each not in told]:
            problems.add("verdicts", f"step {step.step} says {verdict} of a group; OUTCOMES say otherwise")
        for verdict in [each for each in told if each not in said]:
            problems.add("verdicts", f"step {step.step} leaves out {verdict}, which OUTCOMES give it")
        if said != told and sorted(map(str, said)) == sorted(map(str, told)):
            problems.add("verdicts", f"step {step.step} has its verdicts in another order than OUTCOMES")
        is_empty = all(reason is not None for _, reason, _ in told)
        text = f"step {step.step} says empty={step.empty}, but {'no' if is_empty else 'a'} group was kept"
        problems.unless(step.empty == is_empty, "empty_step", text)


def check_tokens(steps: list[StepTrained], derived: list[list[Judged]], rules: Rules, problems: Problems) -> None:
    """No trained token is older than eta where the rule bounds it; all tokens of kept groups are trained or masked."""
    for step in steps:
        ages = [age for age, n in step.staleness.items() if n]
        problems.unless(min(ages, default=0) >= 0, "newer_than_step", f"step {step.step} trained tokens newer than itself")
        if rules.rule in ("mask", "discard") and max(ages, default=0) > rules.eta:
            text = f"step {step.step} trained tokens {max(ages)} steps old under the rule {rules.rule}; the bound is {rules.eta}"
            problems.add("stale_tokens", text)
        if sum(step.staleness.values()) != step.n_tokens_trained:
            text = f"step {step.step} trained {step.n_tokens_trained} tokens, by age {sum(step.staleness.values())}"
            problems.add("token_sums", text)
        if rules.rule != "mask" and step.n_tokens_masked_stale:
            problems.add("token_sums", f"step {step.step} masked tokens under the rule {rules.rule}")
        generated = sum(each.n_tokens for each in derived[step.step] if each.reason is None) if step.step < len(derived) else 0
        used = step.n_tokens_trained + step.n_tokens_masked_stale
        if step.n_tokens_trained and used != generated:
            text = f"step {step.step} trained or masked {used} tokens; the episodes it counts generated {generated}"
            problems.add("token_sums", text)
        if step.empty and step.n_tokens_trained:
            problems.add("token_sums", f"step {step.step} is empty, but trained {step.n_tokens_trained} tokens")


def check_checkpoint(evidence: Evidence, steps: list[StepTrained], derived: list[list[Judged]], problems: Problems) -> None:
    """The ledger of the newest checkpoint holds exactly what the steps before it closed over."""
    found = evidence.checkpoint
    if found is None:
        if evidence.ended is not None and steps:
            problems.add("no_checkpoint", f"the run has ended after {len(steps)} steps without a checkpoint")
        return
    name, checkpoint = found
    ledger = checkpoint.ledger
    problems.unless(ledger.step == checkpoint.step, "ledger", f"{name} is of step {checkpoint.step}, its ledger of {ledger.step}")
    if evidence.ended is not None and checkpoint.step != len(steps):
        problems.add("ledger", f"the run has ended at step {len(steps)}, its newest checkpoint {name} is of {checkpoint.step}")
    if checkpoint.step > len(derived):
        problems.add("ledger", f"{name} is of step {checkpoint.step}, but OUTCOMES complete {len(derived)} steps only")
        return
    closed = [each for step in derived[: checkpoint.step] for each in step]
    reasons = {each.reason for each in closed if each.reason} | set(ledger.discarded)
    _compare(name, "counted", ledger.counted, (s for each in closed if each.reason is None for s in each.graded), problems)
    for reason in sorted(reasons):
        told = (sequence for each in closed if each.reason == reason for sequence in each.graded)
        _compare(name, f"discarded ({reason})", ledger.discarded.get(reason, []), told, problems)
    _compare(name, "ungraded", ledger.ungraded, (s for each in closed for s in each.ungraded), problems)
    _check_watermark(name, evidence, checkpoint, problems)


def _compare(name: str, what: str, intervals: list[Interval], told: Iterable[int], problems: Problems) -> None:
    here, there = members(intervals), set(told)
    for text, differing in (("more", here - there), ("fewer", there - here)):
        if differing:
            some = ", ".join(map(str, sorted(differing)[:5]))
            problems.add("ledger", f"{name} has {len(differing)} {text} {what} than OUTCOMES give it: sequences {some}")


def _check_watermark(name: str, evidence: Evidence, checkpoint: Checkpoint, problems: Problems) -> None:
    ledger = checkpoint.ledger
    parts = [members(ledger.counted), members(ledger.ungraded), *map(members, ledger.discarded.values())]
    settled = set[int]().union(*parts)
    problems.unless(sum(map(len, parts)) == len(settled), "ledger", f"{name} settles an outcome twice")
    for sequence, outcome in evidence.outcomes:
        if outcome.purpose == "train" and sequence <= ledger.watermark and sequence not in settled:
            problems.add(
                "watermark", f"outcome {sequence} lies below the watermark {ledger.watermark} of {name}, but is not settled"
            )
    for event in (event for _, event in evidence.policy if isinstance(event, CheckpointCommitted)):
        if (event.lineage, event.step) == (checkpoint.lineage, checkpoint.step):
            said, there = ({n for n in members(each) if n > ledger.watermark} for each in (event.counted, ledger.counted))
            same = event.watermark == ledger.watermark and said == there
            problems.unless(same, "ledger", f"{name} differs from what POLICY says was committed")


def members(intervals: Iterable[Interval]) -> set[int]:
    """The sequences of intervals."""
    return {sequence for interval in intervals for sequence in range(interval.first, interval.last + 1)}
