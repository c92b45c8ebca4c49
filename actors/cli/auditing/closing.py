"""Group closing told a second time: which groups a step closes over and with what verdict, from OUTCOMES and the rules alone.

Written from the rules (a group is judged when its last member ends; a discarded group is replaced at most `max_refills`
times; `groups_per_step` settled slots make a step), not from the code that trainer and scheduler share.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from actors.cli.auditing.evidence import Rules
from schemas.events import EpisodeGraded, Outcome

LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Judged:
    """A group that a step closed over. `reason` None means that it was trained on."""

    group: str
    reason: str | None
    graded: tuple[int, ...]
    """Sequences of its graded episodes."""
    ungraded: tuple[int, ...]
    n_tokens: int
    """Generated tokens of its graded episodes."""


@dataclass(frozen=True)
class Closed:
    """The verdicts of every step that the outcomes complete, in order, and those of the step that they leave unfinished."""

    steps: list[list[Judged]]
    pending: list[Judged]

    @property
    def discarded(self) -> set[str]:
        """All groups that were discarded."""
        judged = [*self.pending, *(each for step in self.steps for each in step)]
        return {each.group for each in judged if each.reason is not None}


def close(outcomes: Iterable[tuple[int, Outcome]], rules: Rules) -> Closed:
    """Judge every group that has all its outcomes."""
    steps: list[list[Judged]] = []
    members: dict[str, list[tuple[int, Outcome]]] = {}
    pending: list[Judged] = []
    n_settled = 0
    for sequence, outcome in outcomes:
        if outcome.purpose != "train":
            continue
        group = members.setdefault(outcome.group, [])
        group.append((sequence, outcome))
        if len(group) != outcome.members:
            continue
        judged = _judge(outcome.group, group, rules, step=len(steps))
        pending.append(judged)
        if judged.reason is not None and outcome.refill < rules.max_refills:
            continue
        n_settled += 1
        if n_settled == rules.groups_per_step:
            steps.append(pending)
            pending, n_settled = [], 0
    return Closed(steps, pending)


def _judge(name: str, group: list[tuple[int, Outcome]], rules: Rules, step: int) -> Judged:
    graded = {sequence: outcome for sequence, outcome in group if isinstance(outcome, EpisodeGraded)}
    rewards = [outcome.reward.value for outcome in graded.values()]
    steps_of_oldest = [outcome.oldest.step for outcome in graded.values() if outcome.oldest is not None]
    reason: str | None = None
    if len(graded) < max(1, len(group) if rules.min_graded is None else rules.min_graded):
        reason = "group_incomplete"
    elif rules.rule == "discard" and step - min(steps_of_oldest, default=step) > rules.eta:
        reason = "stale"
    elif rules.equal_rewards != "keep" and max(rewards) - min(rewards) <= LEAST_SPREAD:
        reason = "no_signal"
    ungraded = tuple(sequence for sequence, outcome in group if not isinstance(outcome, EpisodeGraded))
    return Judged(name, reason, tuple(graded), ungraded, sum(outcome.n_tokens_generated for outcome in graded.values()))
