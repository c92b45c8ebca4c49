"""The ledger: a pure fold over OUTCOMES that closes groups, orders refills and composes batches.

Trainer and scheduler fold the same outcomes with the same rules and come to the same verdicts. Nothing here reads a clock.

Every *slot* is a place for one group in a batch. A slot resolves when its group is kept, or when the group is discarded
and no refill is left. `groups_per_step` slots, in the order in which they resolve, make a step: it trains the kept
groups among them, and with none it is an empty step.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from asearch.learning.intervals import IntervalSet
from schemas.events import EpisodeGraded, Outcome
from schemas.records import Interval

SIGNAL = 1e-6
"""Rewards of a group that differ by no more are equal: they carry no signal for a group-relative advantage."""


@dataclass(frozen=True)
class LedgerRules:
    """What the fold depends on besides the outcomes.

    `min_graded` None means every member of the group. `equal_rewards` says of a group whose rewards are equal whether it is
    discarded (`no_signal`) or kept.
    """

    groups_per_step: int
    max_refills: int
    eta: int
    rule: str = "mask"
    min_graded: int | None = None
    equal_rewards: str = "discard"


@dataclass(frozen=True)
class Refill:
    """The slot is still open: one more group has to be admitted for it."""

    slot: int
    refill: int
    refill_of: str


@dataclass(frozen=True)
class Verdict:
    """What became of a group: kept (`reason` None) or discarded.

    `sequences` are those of its graded episodes, `n_tokens` what these generated.
    """

    group: str
    reason: str | None
    sequences: tuple[int, ...]
    n_tokens: int


@dataclass(frozen=True)
class StepClosed:
    """A batch is complete: the groups to train on and every verdict since the step before.

    `snapshot` is the ledger just after this close: what a checkpoint taken after the update stores.
    """

    step: int
    groups: tuple[tuple[EpisodeGraded, ...], ...]
    verdicts: tuple[Verdict, ...]
    snapshot: "LedgerSnapshot"


class LedgerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The stored form. `watermark` is the last sequence below which every outcome is settled.

    A fold that starts after `watermark` and skips what the three sets hold comes to the same state. `ungraded` are the
    dropped and dead episodes of closed groups. `closed_slots` are resolved; `refills` says of an open slot whose group was
    discarded which refill it waits for.
    """

    step: int
    watermark: int
    counted: list[Interval]
    discarded: dict[str, list[Interval]]
    ungraded: list[Interval]
    closed_slots: list[Interval] = []
    refills: dict[int, int] = {}


@dataclass
class _OpenGroup:
    slot: int
    refill: int
    members: int
    outcomes: dict[int, tuple[int, Outcome]] = field(default_factory=dict[int, tuple[int, Outcome]])


class Ledger:
    """The fold. `fold()` takes the outcomes of one purpose in stream order, each once, and returns what follows from it."""

    def __init__(self, rules: LedgerRules, snapshot: LedgerSnapshot | None = None) -> None:
        self.rules = rules
        self.step = snapshot.step if snapshot else 0
        self.folded = snapshot.watermark if snapshot else 0
        self.counted = IntervalSet(snapshot.counted if snapshot else ())
        self.discarded: dict[str, IntervalSet] = {
            reason: IntervalSet(intervals) for reason, intervals in (snapshot.discarded if snapshot else {}).items()
        }
        self.ungraded = IntervalSet(snapshot.ungraded if snapshot else ())
        self._closed_slots = IntervalSet(snapshot.closed_slots if snapshot else ())
        self._refills: dict[int, int] = dict(snapshot.refills) if snapshot else {}
        self._open: dict[str, _OpenGroup] = {}
        self._kept: list[tuple[EpisodeGraded, ...]] = []
        self._verdicts: list[Verdict] = []
        self._n_resolved = 0

    @property
    def n_open_groups(self) -> int:
        """Groups that have an outcome and wait for more."""
        return len(self._open)

    @property
    def n_queued(self) -> int:
        """Graded episodes that no verdict has been passed on, or that wait in an unfinished batch."""
        waiting = sum(
            isinstance(outcome, EpisodeGraded) for group in self._open.values() for _, outcome in group.outcomes.values()
        )
        return waiting + sum(len(group) for group in self._kept)

    def fold(self, sequence: int, outcome: Outcome) -> list[Refill | StepClosed]:
        """Take one outcome. A sequence that is already settled, or not newer than the last, changes nothing.

        Nor does an outcome of a group that is closed: OUTCOMES is purged, so the broker cannot refuse a second outcome that
        comes very late, from a process that was stopped for long.
        """
        if sequence <= self.folded:
            return []
        self.folded = sequence
        if self.is_settled(sequence) or self._is_late(outcome):
            return []
        group = self._open.setdefault(outcome.group, _OpenGroup(outcome.slot, outcome.refill, outcome.members))
        group.outcomes.setdefault(outcome.member, (sequence, outcome))
        if len(group.outcomes) < group.members:
            return []
        del self._open[outcome.group]
        return self._close(outcome.group, group)

    def is_settled(self, sequence: int) -> bool:
        """Whether the group of this outcome is closed and its verdict stands."""
        return (
            sequence in self.counted
            or sequence in self.ungraded
            or any(sequence in settled for settled in self.discarded.values())
        )

    def _is_late(self, outcome: Outcome) -> bool:
        return outcome.slot in self._closed_slots or outcome.refill < self._refills.get(outcome.slot, 0)

    def _close(self, name: str, group: _OpenGroup) -> list[Refill | StepClosed]:
        members = [group.outcomes[member] for member in sorted(group.outcomes)]
        graded = [(sequence, outcome) for sequence, outcome in members if isinstance(outcome, EpisodeGraded)]
        for sequence, outcome in members:
            if not isinstance(outcome, EpisodeGraded):
                self.ungraded.add(sequence)
        reason = self._reason_to_discard([outcome for _, outcome in graded], group.members)
        sequences = tuple(sequence for sequence, _ in graded)
        n_tokens = sum(outcome.n_tokens_generated for _, outcome in graded)
        self._verdicts.append(Verdict(name, reason, sequences, n_tokens))
        if reason is None:
            self._kept.append(tuple(outcome for _, outcome in graded))
            return self._resolve(group.slot)
        discarded = self.discarded.setdefault(reason, IntervalSet())
        for sequence in sequences:
            discarded.add(sequence)
        if group.refill < self.rules.max_refills:
            self._refills[group.slot] = group.refill + 1
            return [Refill(group.slot, group.refill + 1, name)]
        return self._resolve(group.slot)

    def _reason_to_discard(self, graded: list[EpisodeGraded], members: int) -> str | None:
        needed = members if self.rules.min_graded is None else self.rules.min_graded
        if len(graded) < max(1, needed):
            return "group_incomplete"
        if self.rules.rule == "discard" and any(
            outcome.oldest is not None and self.step - outcome.oldest.step > self.rules.eta for outcome in graded
        ):
            return "stale"
        rewards = [outcome.reward.value for outcome in graded]
        if self.rules.equal_rewards == "discard" and max(rewards) - min(rewards) <= SIGNAL:
            return "no_signal"
        return None

    def _resolve(self, slot: int) -> list[Refill | StepClosed]:
        self._closed_slots.add(slot)
        self._refills.pop(slot, None)
        self._n_resolved += 1
        if self._n_resolved < self.rules.groups_per_step:
            return []
        for verdict in self._verdicts:
            if verdict.reason is None:
                for sequence in verdict.sequences:
                    self.counted.add(sequence)
        step, groups, verdicts = self.step, tuple(self._kept), tuple(self._verdicts)
        self.step += 1
        self._kept, self._verdicts, self._n_resolved = [], [], 0
        return [StepClosed(step, groups, verdicts, self.snapshot())]

    def snapshot(self) -> LedgerSnapshot:
        """The state just after a step has closed. Between closes it would lose the unfinished batch, so do not store it then."""
        open_sequences = [sequence for group in self._open.values() for sequence, _ in group.outcomes.values()]
        return LedgerSnapshot(
            step=self.step,
            watermark=min(open_sequences, default=self.folded + 1) - 1,
            counted=self.counted.intervals(),
            discarded={reason: settled.intervals() for reason, settled in self.discarded.items()},
            ungraded=self.ungraded.intervals(),
            closed_slots=self._closed_slots.intervals(),
            refills=dict(self._refills),
        )


def fold_all(ledger: Ledger, outcomes: Iterable[tuple[int, Outcome]]) -> list[Refill | StepClosed]:
    """Fold many outcomes; what follows from them, in order."""
    return [effect for sequence, outcome in outcomes for effect in ledger.fold(sequence, outcome)]
