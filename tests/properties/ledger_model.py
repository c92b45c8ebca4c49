"""The ledger by its definition: everything is computed anew from all outcomes, slowly and without any state."""

from dataclasses import dataclass, field

from asearch.learning.ledger import LedgerRules
from schemas.events import EpisodeGraded, Outcome

Told = list[tuple[int, Outcome]]


@dataclass
class Step:
    """A step that closed."""

    kept: list[str]
    verdicts: list[tuple[str, str | None]]
    watermark: int


@dataclass
class Books:
    """What the outcomes so far come to."""

    steps: list[Step] = field(default_factory=list)
    refills: list[tuple[int, int, str]] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)
    discarded: dict[str, set[int]] = field(default_factory=dict)
    ungraded: set[int] = field(default_factory=set)
    n_queued: int = 0


def reason_of(outcomes: list[Outcome], rules: LedgerRules, step: int) -> str | None:
    """Why a complete group is not trained at `step`; None where it is."""
    rewards = [outcome.reward.value for outcome in outcomes if isinstance(outcome, EpisodeGraded)]
    wanted = len(outcomes) if rules.min_graded is None else rules.min_graded
    if not rewards or len(rewards) < wanted:
        return "group_incomplete"
    oldest = [outcome.oldest.step for outcome in outcomes if isinstance(outcome, EpisodeGraded) and outcome.oldest]
    if rules.rule == "discard" and oldest and step - min(oldest) > rules.eta:
        return "stale"
    if rules.equal_rewards == "keep":
        return None
    return "no_signal" if max(rewards) - min(rewards) < 1e-5 else None


def books_of(told: Told, rules: LedgerRules) -> Books:
    """Close the groups in the order in which their last outcomes came."""
    books, groups = Books(), dict[str, Told]()
    for sequence, outcome in told:
        groups.setdefault(outcome.group, []).append((sequence, outcome))
    whole = [name for name, members in groups.items() if len(members) == members[0][1].members]
    pending = dict[str, str | None]()
    n_resolved = 0
    for name in sorted(whole, key=lambda each: groups[each][-1][0]):
        members = sorted(groups[name], key=lambda each: each[1].member)
        first, graded = members[0][1], {seq for seq, outcome in members if isinstance(outcome, EpisodeGraded)}
        reason = reason_of([outcome for _, outcome in members], rules, len(books.steps))
        pending[name] = reason
        books.ungraded |= {seq for seq, _ in members} - graded
        if reason is not None:
            books.discarded.setdefault(reason, set()).update(graded)
            if first.refill < rules.max_refills:
                books.refills.append((first.slot, first.refill + 1, name))
                continue
        n_resolved += 1
        if n_resolved < rules.groups_per_step:
            continue
        kept = [each for each, why in pending.items() if why is None]
        for each in kept:
            books.counted |= {seq for seq, outcome in groups[each] if isinstance(outcome, EpisodeGraded)}
        now = groups[name][-1][0]
        books.steps.append(Step(kept, list(pending.items()), _watermark(groups, now)))
        pending, n_resolved = {}, 0
    settled = books.counted.union(*books.discarded.values())
    books.n_queued = len({seq for seq, outcome in told if isinstance(outcome, EpisodeGraded)} - settled)
    return books


def _watermark(groups: dict[str, Told], now: int) -> int:
    """The last sequence below which nothing belonged to an incomplete group when `now` was told."""
    waiting = [
        seq
        for members in groups.values()
        if sum(seq <= now for seq, _ in members) < members[0][1].members
        for seq, _ in members
        if seq <= now
    ]
    return min(waiting, default=now + 1) - 1
