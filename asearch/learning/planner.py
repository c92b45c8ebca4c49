"""What to ask for next: a pure fold of PLAN, OUTCOMES and POLICY that says which groups may be admitted.

A run goes through phases: a greedy evaluation before training, training, an evaluation after it. In training the slots
are admitted by the capacity rule: slot n belongs to step floor(n / groups_per_step), which may be at most eta steps ahead
of the newest published policy (AReaL, arXiv 2505.24298, equation 3, in groups).
"""

from dataclasses import dataclass, field

from asearch.learning.ledger import Ledger, LedgerRules, Refill
from asearch.learning.staleness import admits
from schemas.events import EpisodeGraded, GroupAdmitted, Outcome

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
    """The fold. Facts go in by `admitted`, `ended`, `published`, `trained`; `wanted` says what follows."""

    rules: PlanRules
    step: int | None = None
    """Newest published policy step, None before the first."""
    trained_steps: int = 0
    empty_in_a_row: int = 0
    n_train_admitted: int = 0
    evaluations: dict[str, _Evaluation] = field(default_factory=dict[str, _Evaluation])

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.rules.ledger)
        self._groups: set[str] = set()
        self._members_left: dict[str, int] = {}
        self._next_slot = 0
        self._refills: dict[str, Refill] = {}
        for label in self.rules.evaluations:
            self.evaluations[label] = _Evaluation()

    # --- facts ---

    def admitted(self, event: GroupAdmitted) -> None:
        """A group was admitted."""
        if event.group in self._groups:
            return
        self._groups.add(event.group)
        self._members_left[event.group] = event.members
        if event.purpose == EVAL:
            self.evaluations.setdefault(event.label, _Evaluation()).admitted += 1
            return
        self.n_train_admitted += 1
        if event.refill:
            self._refills.pop(_group_name(event.slot, event.refill), None)
        else:
            self._next_slot = max(self._next_slot, event.slot + 1)

    def ended(self, sequence: int, outcome: Outcome) -> None:
        """An episode has its outcome."""
        left = self._members_left.get(outcome.group, 0) - 1
        if left > 0:
            self._members_left[outcome.group] = left
        else:
            self._members_left.pop(outcome.group, None)
        if outcome.purpose == EVAL:
            evaluation = self.evaluations.setdefault(outcome.label, _Evaluation())
            evaluation.ended += 1
            evaluation.correct += isinstance(outcome, EpisodeGraded) and outcome.correct
            return
        for effect in self._ledger.fold(sequence, outcome):
            if isinstance(effect, Refill):
                name = _group_name(effect.slot, effect.refill)
                if name not in self._groups:
                    self._refills[name] = effect

    def published(self, step: int) -> None:
        """A policy version was published."""
        self.step = step if self.step is None else max(self.step, step)

    def trained(self, step: int, empty: bool) -> None:
        """A step was taken; steps are numbered by the policy they begin from."""
        if step + 1 <= self.trained_steps:
            return
        self.trained_steps = step + 1
        self.empty_in_a_row = self.empty_in_a_row + 1 if empty else 0

    # --- what follows ---

    @property
    def n_in_flight(self) -> int:
        """Groups admitted with an episode that has no outcome."""
        return len(self._members_left)

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
