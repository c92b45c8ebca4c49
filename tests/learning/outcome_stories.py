"""Runs of the planner and the ledger without any actor: what is admitted ends in some order, in every way it can end."""

import random
from dataclasses import dataclass, field

from asearch.learning.ledger import Ledger, LedgerRules, StepClosed
from asearch.learning.planner import EVAL, Admission, Planner, PlanRules
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeGraded, GroupAdmitted, Outcome
from schemas.records import Reward, Task, Version


def outcome_of(group: GroupAdmitted, member: int, end: str, reward: float, oldest: int) -> Outcome:
    """The outcome of a member: `graded`, `dropped` or `dead`."""
    shared = {
        "id": f"outcome-{group.group}-{member}",
        "episode": f"{group.group}-{member}",
        "group": group.group,
        "member": member,
        "members": group.members,
        "slot": group.slot,
        "purpose": group.purpose,
        "task": group.task.id,
        "refill": group.refill,
        "label": group.label,
    }
    if end == "dropped":
        return EpisodeDropped(**shared, reason="deadline")
    if end == "dead":
        return EpisodeDead(**shared, reason="no_progress")
    return EpisodeGraded(
        **shared,
        reward=Reward(value=reward),
        trajectory=None,
        status="answered",
        answer="a",
        n_turns=1,
        n_tokens_generated=1,
        n_searches=0,
        n_reads=0,
        oldest=Version(lineage=1, step=oldest),
        correct=reward > 0,
    )


def admitted_of(admission: Admission, progress: int) -> GroupAdmitted:
    """The fact of an admission."""
    return GroupAdmitted(
        id=f"group-{admission.group}",
        group=admission.group,
        purpose=admission.purpose,
        slot=admission.slot,
        task=Task(id=f"task-{admission.ordinal}", question="?"),
        members=admission.members,
        seeds=[0] * admission.members,
        progress=progress,
        refill=admission.refill,
        refill_of=admission.refill_of,
        label=admission.label,
    )


@dataclass
class Chances:
    """How episodes end: shares of dropped and dead ones, and of groups in which all score the same."""

    dropped: float = 0.1
    dead: float = 0.05
    flat: float = 0.2


@dataclass
class Story:
    """A whole run, episode by episode, in a random order; the facts it produced, in order."""

    rules: PlanRules
    chances: Chances
    seed: int
    facts: list[tuple[str, object]] = field(default_factory=list)
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    closed: list[StepClosed] = field(default_factory=list)
    groups: dict[str, GroupAdmitted] = field(default_factory=dict)
    end: str = ""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.planner = Planner(self.rules)
        self.ledger = Ledger(self.rules.ledger)
        self._open: list[tuple[GroupAdmitted, int]] = []
        self._n_outcomes = 0
        self._waiting: list[StepClosed] = []
        self._step = 0
        self._flat: dict[str, float | None] = {}

    def run(self, max_moves: int = 20_000) -> "Story":
        """Play until the planner says `done` or `starved`; fails where nothing can move any more."""
        self._publish(0)
        for _ in range(max_moves):
            if self.planner.phase in ("done", "starved"):
                self.end = self.planner.phase
                return self
            self._admit()
            moves = [self._end_one] if self._open else []
            moves += [self._train] if self._waiting else []
            assert moves, f"nothing can move in phase {self.planner.phase}"
            self.random.choice(moves)()
        raise AssertionError("the run does not end")

    def _say(self, kind: str, fact: object) -> None:
        self.facts.append((kind, fact))
        apply(self.planner, kind, fact)

    def _publish(self, step: int) -> None:
        self._say("published", step)

    def _admit(self) -> None:
        wanted = self.planner.wanted()
        for admission in wanted[: self.random.randint(1, len(wanted))] if wanted else []:
            group = admitted_of(admission, self.planner.step or 0)
            assert group.group not in self.groups, "a group was admitted twice"
            self.groups[group.group] = group
            self._say("admitted", group)
            self._open += [(group, member) for member in range(group.members)]

    def _end_one(self) -> None:
        group, member = self._open.pop(self.random.randrange(len(self._open)))
        end = self.random.choices(
            ["dropped", "dead", "graded"],
            [self.chances.dropped, self.chances.dead, 1 - self.chances.dropped - self.chances.dead],
        )[0]
        flat = self._flat.setdefault(group.group, 1.0 if self.random.random() < self.chances.flat else None)
        reward = flat if flat is not None else float(self.random.randint(0, 2))
        oldest = self.random.randint(0, self._step)
        self._n_outcomes += self.random.choice([1, 1, 1, 2])
        outcome = outcome_of(group, member, end, reward, oldest)
        self.outcomes.append((self._n_outcomes, outcome))
        self._say("ended", (self._n_outcomes, outcome))
        if outcome.purpose != EVAL:
            closed = [effect for effect in self.ledger.fold(self._n_outcomes, outcome) if isinstance(effect, StepClosed)]
            self._waiting += closed
            self.closed += closed

    def _train(self) -> None:
        closed = self._waiting.pop(0)
        assert closed.step == self._step
        self._say("trained", (closed.step, not closed.groups))
        self._step += 1
        self._publish(self._step)


def apply(planner: Planner, kind: str, fact: object) -> None:
    """Tell a planner a fact of a story."""
    match kind, fact:
        case "admitted", GroupAdmitted():
            planner.admitted(fact)
        case "ended", (int(sequence), Outcome() as outcome):
            planner.ended(sequence, outcome)
        case "published", int(step):
            planner.published(step)
        case "trained", (int(step), bool(empty)):
            planner.trained(step, empty)
        case _:
            raise AssertionError(f"no fact: {kind} {fact}")


def rules_of(draw: random.Random, steps: int = 4) -> PlanRules:
    """Random rules of a short run."""
    size = draw.randint(1, 3)
    ledger = LedgerRules(
        groups_per_step=draw.randint(1, 4),
        max_refills=draw.randint(0, 2),
        eta=draw.randint(0, 3),
        rule=draw.choice(["mask", "discard", "keep"]),
        min_graded=draw.choice([None, 1, size]),
        equal_rewards=draw.choice(["discard", "discard", "keep"]),
    )
    return PlanRules(
        steps=steps,
        group_size=size,
        ledger=ledger,
        max_groups_in_flight=draw.randint(1, 12),
        max_empty_steps=draw.randint(0, 3),
        n_eval=draw.randint(1, 4),
        evaluations=draw.choice([(), ("before",), ("after",), ("before", "after")]),
    )
