"""The ledger against its definition, with repeats, gaps, refills and restarts from the checkpoint, in any order."""

from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asearch.learning.ledger import Ledger, LedgerRules, LedgerSnapshot, Refill, StepClosed
from asearch.learning.planner import Admission
from schemas.events import GroupAdmitted, Outcome
from tests.learning.outcome_stories import admitted_of, outcome_of
from tests.properties.counts import examples
from tests.properties.ledger_model import books_of

RULES = st.builds(
    LedgerRules,
    groups_per_step=st.integers(1, 3),
    max_refills=st.integers(0, 2),
    eta=st.integers(0, 2),
    rule=st.sampled_from(["mask", "discard"]),
    min_graded=st.sampled_from([None, 1, 2]),
    equal_rewards=st.sampled_from(["discard", "keep"]),
)


class LedgerMachine(RuleBasedStateMachine):
    """Groups come and end as hypothesis likes; the ledger is thrown away and made anew in between."""

    @initialize(rules=RULES, size=st.integers(1, 3))
    def begin(self, rules: LedgerRules, size: int) -> None:
        self.rules, self.size = rules, size
        self.ledger = Ledger(rules)
        self.told: list[tuple[int, Outcome]] = []
        self.late: list[tuple[int, Outcome]] = []
        self.open: list[tuple[GroupAdmitted, int]] = []
        self.closed: list[StepClosed] = []
        self.refills: list[Refill] = []
        self.next_slot = self.last = 0

    def _admit(self, slot: int, refill: int, refill_of: str | None) -> None:
        admission = Admission(f"t-{slot}-{refill}", "train", slot, self.size, 0, "", refill, refill_of)
        group = admitted_of(admission, 0)
        self.open += [(group, member) for member in range(self.size)]

    @precondition(lambda self: len(self.open) < 8)
    @rule()
    def admit(self) -> None:
        self._admit(self.next_slot, 0, None)
        self.next_slot += 1

    @precondition(lambda self: bool(self.open))
    @rule(
        data=st.data(),
        ends=st.lists(st.sampled_from(["graded", "graded", "graded", "dropped", "dead"]), min_size=1, max_size=3),
        reward=st.sampled_from([0.0, 0.0, 1.0, 0.5]),
        age=st.integers(0, 3),
        gap=st.sampled_from([1, 1, 1, 3]),
    )
    def end(self, data: Any, ends: list[str], reward: float, age: int, gap: int) -> None:
        for number, end in enumerate(ends[: len(self.open)]):
            self._end_one(data, end, reward + number / 2, age, gap)

    def _end_one(self, data: Any, end: str, reward: float, age: int, gap: int) -> None:
        # Small draws take the youngest: older groups stay open while later ones are settled.
        group, member = self.open.pop(-1 - data.draw(st.integers(0, len(self.open) - 1)))
        self.last += gap
        outcome = outcome_of(group, member, end, reward, max(0, len(self.closed) - age))
        self.told.append((self.last, outcome))
        self._take(self.ledger.fold(self.last, outcome))

    def _take(self, effects: list[Refill | StepClosed]) -> None:
        for effect in effects:
            if isinstance(effect, Refill):
                self.refills.append(effect)
                self._admit(effect.slot, effect.refill, effect.refill_of)
            else:
                self.closed.append(effect)

    @precondition(lambda self: bool(self.told))
    @rule(data=st.data())
    def tell_again(self, data: Any) -> None:
        sequence, outcome = data.draw(st.sampled_from(self.told))
        assert self.ledger.fold(sequence, outcome) == []

    @precondition(lambda self: bool(self.told))
    @rule(data=st.data(), end=st.sampled_from(["graded", "dropped"]))
    def tell_a_second_outcome(self, data: Any, end: str) -> None:
        """Purged outcomes cannot refuse it; it changes nothing if its group is closed, and is not drawn for open ones."""
        groups = {outcome.group: outcome for _, outcome in self.told}
        ended = [outcome for name, outcome in groups.items() if name not in {group.group for group, _ in self.open}]
        if not ended:
            return
        first = data.draw(st.sampled_from(ended))
        admission = Admission(first.group, "train", first.slot, self.size, 0, "", first.refill)
        self.last += 1
        self.late.append((self.last, outcome_of(admitted_of(admission, 0), first.member, end, 1.0, 0)))
        assert self.ledger.fold(*self.late[-1]) == []

    @rule(steps_back=st.integers(0, 2))
    def restart_from_a_checkpoint(self, steps_back: int) -> None:
        """What follows from the outcomes above the watermark is what followed the first time."""
        kept = self.closed[: max(0, len(self.closed) - steps_back)]
        stored = msgspec.json.encode(kept[-1].snapshot) if kept else None
        anew = Ledger(self.rules, msgspec.json.decode(stored, type=LedgerSnapshot) if stored else None)
        begin = kept[-1].snapshot.watermark if kept else 0
        stream = sorted([*self.told, *self.late], key=lambda told: told[0])
        effects = [effect for seq, outcome in stream if seq > begin for effect in anew.fold(seq, outcome)]
        again = [effect for effect in effects if isinstance(effect, StepClosed)]
        assert again == self.closed[len(kept) :]
        assert {(r.slot, r.refill, r.refill_of) for r in effects if isinstance(r, Refill)} <= {
            (r.slot, r.refill, r.refill_of) for r in self.refills
        }
        self.ledger = anew

    @invariant()
    def agrees_with_the_definition(self) -> None:
        if not hasattr(self, "told"):
            return
        books = books_of(self.told, self.rules)
        assert set(self.ledger.counted) == books.counted
        assert {reason: set(held) for reason, held in self.ledger.discarded.items()} == books.discarded
        assert set(self.ledger.ungraded) == books.ungraded
        assert (self.ledger.step, self.ledger.n_queued) == (len(books.steps), books.n_queued)
        assert [(r.slot, r.refill, r.refill_of) for r in self.refills] == books.refills
        for number, (closed, step) in enumerate(zip(self.closed, books.steps, strict=True)):
            assert closed.step == number
            assert [group[0].group for group in closed.groups] == step.kept
            assert [(verdict.group, verdict.reason) for verdict in closed.verdicts] == step.verdicts
            assert closed.snapshot.watermark == step.watermark


TestLedger = LedgerMachine.TestCase
TestLedger.settings = examples(100, steps=40)
