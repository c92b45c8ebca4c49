"""What to ask for next: a pure fold of PLAN, OUTCOMES and POLICY that says which groups may be admitted.

A run goes through phases: a greedy evaluation before training, training, an evaluation after it. In training the slots
are admitted by the capacity rule: slot n belongs to step floor(n / groups_per_step), which may be at most eta steps ahead
of the newest published policy (AReaL, arXiv 2505.24298, equation 3, in groups).
"""

from dataclasses import dataclass, field

from asearch.learning.intervals import IntervalSet
from asearch.learning.ledger import Ledger, LedgerRules, LedgerSnapshot, Refill
from asearch.learning.staleness import admits
from schemas.events import EpisodeGraded, EvaluationFolded, GroupAdmitted, Outcome, PlanFolded

TRAIN, EVAL = "train", "eval"


@dataclass(frozen=True)
class Admission:
    """A group to admit. `ordinal` numbers the train groups of the run, refills included: what a sampler is asked with."""

    group: str
    purpose: str
    slot: int
    members: int
    ordinal: int
    label: str = ""
    refill: int = 0
    refill_of: str | None = None


@dataclass(frozen=True)
class PlanRules:
    """What the plan depends on besides the facts."""

    steps: int
    group_size: int
    ledger: LedgerRules
    max_groups_in_flight: int
    max_empty_steps: int
    n_eval: int
    evaluations: tuple[str, ...] = ("before", "after")


@dataclass
class _Evaluation:
    admitted: int = 0
    ended: int = 0
    correct: int = 0


@dataclass
class Planner:
    """The fold. Facts go in by `admitted`, `ended`, `published`, `trained`, or by `restore`; `wanted` says what follows."""

    rules: PlanRules
    step: int | None = None
    """Newest published policy step, None before the first."""
    trained_steps: int = 0
    empty_in_a_row: int = 0
    n_train_admitted: int = 0
    evaluations: dict[str, _Evaluation] = field(default_factory=dict[str, _Evaluation])

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.rules.ledger)
        self._snapshot = self._ledger.snapshot()
        self._folded = 0
        self._refilled: set[str] = set()
        self._open: dict[str, set[int]] = {}
        self._next_slot = 0
        self._refills: dict[str, Refill] = {}
        for label in self.rules.evaluations:
            self.evaluations[label] = _Evaluation()

    # --- facts ---

    def admitted(self, event: GroupAdmitted) -> None:
        """A group was admitted; each is told once."""
        self._open[event.group] = set(range(event.members))
        if event.purpose == EVAL:
            self.evaluations.setdefault(event.label, _Evaluation()).admitted += 1
            return
        self.n_train_admitted += 1
        if event.refill:
            self._refilled.add(event.group)
            self._refills.pop(event.group, None)
        else:
            self._next_slot = max(self._next_slot, event.slot + 1)

    def ended(self, sequence: int, outcome: Outcome) -> None:
        """An episode has its outcome. A sequence that is not newer than the last, and a second outcome, change nothing."""
        if sequence <= self._folded:
            return
        self._folded = sequence
        if self.is_open(outcome.group, outcome.member):
            self._close(outcome)
        if outcome.purpose != TRAIN:
            return
        for effect in self._ledger.fold(sequence, outcome):
            if not isinstance(effect, Refill):
                self._snapshot = effect.snapshot
            elif (name := _group_name(effect.slot, effect.refill)) not in self._refilled:
                self._refills[name] = effect

    def _close(self, outcome: Outcome) -> None:
        members = self._open[outcome.group]
        members.discard(outcome.member)
        if not members:
            del self._open[outcome.group]
        if outcome.purpose == EVAL:
            evaluation = self.evaluations.setdefault(outcome.label, _Evaluation())
            evaluation.ended += 1
            evaluation.correct += isinstance(outcome, EpisodeGraded) and outcome.correct

    def published(self, step: int) -> None:
        """A policy version was published."""
        self.step = step if self.step is None else max(self.step, step)

    def trained(self, step: int, empty: bool) -> None:
        """A step was taken; steps are numbered by the policy they begin from."""
        if step + 1 <= self.trained_steps:
            return
        self.trained_steps = step + 1
        self.empty_in_a_row = self.empty_in_a_row + 1 if empty else 0

    # --- without the outcomes that are settled ---

    @property
    def watermark(self) -> int:
        """Up to this sequence of OUTCOMES a fact made by `fold` stands for the outcomes."""
        return self._snapshot.watermark

    @property
    def folded(self) -> int:
        """The last sequence of OUTCOMES that is folded."""
        return self._folded

    def fold(self, id: str, at_ns: int, run: str) -> PlanFolded:
        """The ledger as of the last complete batch, and what is open now: an outcome that comes again ends nothing twice."""
        snapshot = self._snapshot
        settled = IntervalSet(
            [*snapshot.counted, *snapshot.ungraded, *(each for part in snapshot.discarded.values() for each in part)]
        )
        return PlanFolded(
            id=id,
            at_ns=at_ns,
            run=run,
            watermark=snapshot.watermark,
            step=snapshot.step,
            settled=settled.after(snapshot.watermark),
            closed_slots=snapshot.closed_slots,
            refills=snapshot.refills,
            open={group: sorted(members) for group, members in sorted(self._open.items())},
            evaluations={
                label: EvaluationFolded(ended=each.ended, correct=each.correct) for label, each in self.evaluations.items()
            },
        )

    def restore(self, event: PlanFolded) -> None:
        """Take the place of all outcomes up to the watermark; PLAN up to the event has been told, later outcomes come again."""
        self._snapshot = LedgerSnapshot(
            step=event.step,
            watermark=event.watermark,
            counted=event.settled,
            discarded={},
            ungraded=[],
            closed_slots=event.closed_slots,
            refills=event.refills,
        )
        self._ledger = Ledger(self.rules.ledger, self._snapshot)
        self._folded = event.watermark
        self._open = {group: set(members) for group, members in event.open.items()}
        for label, folded in event.evaluations.items():
            evaluation = self.evaluations.setdefault(label, _Evaluation())
            evaluation.ended, evaluation.correct = folded.ended, folded.correct
        waiting = [Refill(slot, refill, _group_name(slot, refill - 1)) for slot, refill in event.refills.items()]
        named = {_group_name(each.slot, each.refill): each for each in waiting}
        self._refills = {name: refill for name, refill in named.items() if name not in self._refilled}

    # --- what follows ---

    def is_open(self, group: str, member: int) -> bool:
        """Whether this episode was admitted and has no outcome."""
        return member in self._open.get(group, ())

    @property
    def n_in_flight(self) -> int:
        """Groups admitted with an episode that has no outcome."""
        return len(self._open)

    @property
    def phase(self) -> str:
        """`starting`, the label of an evaluation under way, `train`, `starved` or `done`."""
        if self.step is None:
            return "starting"
        labels = self.rules.evaluations
        if "before" in labels and self.evaluations["before"].ended < self.rules.n_eval:
            return "before"
        if self.empty_in_a_row > self.rules.max_empty_steps:
            return "starved"
        if self.trained_steps < self.rules.steps:
            return TRAIN
        if self.step < self.rules.steps:
            return "publishing"
        if "after" in labels and self.evaluations["after"].ended < self.rules.n_eval:
            return "after"
        return "done"

    def wanted(self) -> list[Admission]:
        """The groups that may be admitted now, in the order in which to admit them."""
        phase, room = self.phase, self.rules.max_groups_in_flight - self.n_in_flight
        if phase in self.rules.evaluations:
            begun = self.evaluations[phase].admitted
            room = self.rules.max_groups_in_flight * self.rules.group_size - self.n_in_flight
            return [
                Admission(f"e-{phase}-{index}", EVAL, index, 1, index, label=phase)
                for index in range(begun, min(self.rules.n_eval, begun + max(0, room)))
            ]
        return self._wanted_to_train(room) if phase == TRAIN else []

    def _wanted_to_train(self, room: int) -> list[Admission]:
        wanted: list[Admission] = []
        size, per_step = self.rules.group_size, self.rules.ledger.groups_per_step
        for name, refill in self._refills.items():
            ordinal = self.n_train_admitted + len(wanted)
            wanted.append(Admission(name, TRAIN, refill.slot, size, ordinal, "", refill.refill, refill.refill_of))
        slot = self._next_slot
        while (
            len(wanted) < room
            and slot < self.rules.steps * per_step
            and admits(slot, per_step, self.step or 0, self.rules.ledger.eta)
        ):
            wanted.append(Admission(_group_name(slot, 0), TRAIN, slot, size, self.n_train_admitted + len(wanted)))
            slot += 1
        return wanted[: max(room, 0)]


def _group_name(slot: int, refill: int) -> str:
    return f"t-{slot}-{refill}"
