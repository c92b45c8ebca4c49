"""Admission: how far generation may run ahead, refills, and what a scheduler or trainer that restarts changes (nothing)."""

import random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asearch.learning.ledger import Ledger, StepClosed
from asearch.learning.planner import EVAL, TRAIN, Planner, PlanRules
from schemas.events import EpisodeGraded, GroupAdmitted, Outcome, PlanFolded
from tests.learning.outcome_stories import admitted_of, apply, outcome_of, rules_of
from tests.properties.counts import examples

RULES = st.integers(0, 10**6).map(lambda seed: rules_of(random.Random(seed), steps=3))


class AdmissionMachine(RuleBasedStateMachine):
    """A run played by hypothesis: it decides who moves, who dies, and how episodes end."""

    @initialize(rules=RULES)
    def begin(self, rules: PlanRules) -> None:
        self.rules = rules
        self.planner = Planner(rules)
        self.ledger = Ledger(rules.ledger)
        self.facts: list[tuple[str, object]] = []
        self.open: list[tuple[GroupAdmitted, int]] = []
        self.groups: dict[str, GroupAdmitted] = {}
        self.told: list[tuple[int, Outcome]] = []
        self.steps: list[StepClosed] = []
        self.step = self.checkpoint = self.newest = self.purged = 0
        self._say("published", 0)

    def _say(self, kind: str, fact: object) -> None:
        self.facts.append((kind, fact))
        apply(self.planner, kind, fact)

    @rule(n=st.integers(1, 6))
    def admit(self, n: int) -> None:
        for admission in self.planner.wanted()[:n]:
            group = admitted_of(admission, self.newest)
            assert group.group not in self.groups
            self._may_be_admitted(group)
            self.groups[group.group] = group
            self._say("admitted", group)
            self.open += [(group, member) for member in range(group.members)]

    def _may_be_admitted(self, group: GroupAdmitted) -> None:
        rules, ledger = self.rules, self.rules.ledger
        if group.purpose == EVAL:
            assert group.slot < rules.n_eval
            return
        assert group.slot < ledger.groups_per_step * min(rules.steps, self.newest + ledger.eta + 1)
        live = {other.group for other, _ in self.open if other.purpose == TRAIN}
        assert len(live) < rules.max_groups_in_flight
        before = [other for other in self.groups.values() if other.purpose == TRAIN and other.slot == group.slot]
        assert group.refill == len(before) <= ledger.max_refills
        assert not live & {other.group for other in before}
        assert group.refill_of == (before[-1].group if before else None)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data(), end=st.sampled_from(["graded"] * 4 + ["dropped", "dead"]), reward=st.sampled_from([0.0, 1.0, 1.0]))
    def end(self, data: Any, end: str, reward: float) -> None:
        group, member = self.open.pop(-1 - data.draw(st.integers(0, len(self.open) - 1)))
        outcome = outcome_of(group, member, end, reward, data.draw(st.integers(0, self.newest)))
        self.told.append((len(self.told) + 1, outcome))
        self._say("ended", self.told[-1])
        if outcome.purpose == TRAIN:
            effects = self.ledger.fold(*self.told[-1])
            self.steps += [effect for effect in effects if isinstance(effect, StepClosed)]

    @precondition(lambda self: self.step < len(self.steps) and self.step < self.rules.steps)
    @rule()
    def train(self) -> None:
        closed = self.steps[self.step]
        self._say("trained", (closed.step, not closed.groups))
        self.step += 1
        self.newest = max(self.newest, self.step)
        self._say("published", self.step)

    @rule()
    def commit_checkpoint(self) -> None:
        self.checkpoint = self.step

    @precondition(lambda self: self.step > self.checkpoint)
    @rule()
    def trainer_restarts(self) -> None:
        """It publishes its checkpoint's step again and trains the same steps once more."""
        self.step = self.checkpoint
        self._say("published", self.step)

    @precondition(lambda self: self.planner.watermark > self.purged)
    @rule()
    def fold_and_purge(self) -> None:
        """What stands for the settled outcomes goes to PLAN, and they are purged."""
        self.facts.append(("folded", self.planner.fold("f", 0, "r")))
        self.purged = self.planner.watermark

    @rule(seed=st.integers(0, 1000))
    def scheduler_restarts(self, seed: int) -> None:
        """PLAN is folded first, then what is left of OUTCOMES and POLICY in whatever order they are read."""
        draw, anew = random.Random(seed), Planner(self.rules)
        plan = [each for each in self.facts if each[0] in ("admitted", "folded")]
        sources = [
            [("ended", told) for told in self.told if told[0] > self.purged],
            [each for each in self.facts if each[0] in ("published", "trained")],
        ]
        for kind, fact in plan:
            anew.restore(fact) if isinstance(fact, PlanFolded) else apply(anew, kind, fact)
        while any(sources):
            apply(anew, *draw.choice([source for source in sources if source]).pop(0))
        assert (anew.phase, anew.wanted(), anew.n_in_flight) == (
            self.planner.phase,
            self.planner.wanted(),
            self.planner.n_in_flight,
        )
        self.planner = anew

    @invariant()
    def somebody_can_move(self) -> None:
        if not hasattr(self, "rules"):
            return
        done = self.planner.phase in ("done", "starved")
        assert done or self.open or self.planner.wanted() or self.step < len(self.steps)

    @invariant()
    def a_batch_is_whole_and_bounded_in_age(self) -> None:
        for closed in getattr(self, "steps", []):
            slots = {outcome.slot for group in closed.groups for outcome in group}
            assert len(slots) == len(closed.groups) <= self.rules.ledger.groups_per_step
            for group in closed.groups:
                assert all(isinstance(outcome, EpisodeGraded) for outcome in group)
                if self.rules.ledger.rule == "discard":
                    assert all(closed.step - outcome.oldest.step <= self.rules.ledger.eta for outcome in group if outcome.oldest)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = examples(60, steps=60)
