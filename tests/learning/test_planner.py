import random
from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.learning.ledger import LedgerRules
from asearch.learning.planner import EVAL, TRAIN, Planner, PlanRules
from asearch.learning.staleness import admits
from schemas.events import GroupAdmitted, Outcome, PlanFolded
from tests.learning.outcome_stories import Chances, Story, admitted_of, apply, outcome_of, rules_of

stories = st.integers(0, 10**6)
chances = st.builds(
    Chances,
    dropped=st.sampled_from([0.0, 0.1, 0.4]),
    dead=st.sampled_from([0.0, 0.1]),
    flat=st.sampled_from([0.0, 0.3, 1.0]),
)


def played(seed: int, chance: Chances) -> Story:
    return Story(rules_of(random.Random(seed)), chance, seed).run()


@settings(max_examples=80, deadline=None)
@given(stories, chances)
def test_a_run_always_ends(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    assert story.end in ("done", "starved")
    if story.end == "done":
        assert story.planner.trained_steps == story.rules.steps
        assert all(story.planner.evaluations[label].ended == story.rules.n_eval for label in story.rules.evaluations)
        assert story.planner.n_in_flight == 0
        assert story.planner.wanted() == []


@settings(max_examples=60, deadline=None)
@given(stories, chances)
def test_admissions_keep_the_capacity_rule_and_come_once(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    rules, slots = story.rules, set[tuple[int, int]]()
    step = 0
    for kind, fact in story.facts:
        if kind == "published" and isinstance(fact, int):
            step = max(step, fact)
        if not isinstance(fact, GroupAdmitted) or fact.purpose != TRAIN:
            continue
        assert admits(fact.slot, rules.ledger.groups_per_step, step, rules.ledger.eta)
        assert fact.slot < rules.steps * rules.ledger.groups_per_step
        assert fact.members == rules.group_size
        assert (fact.slot, fact.refill) not in slots
        assert not fact.refill or (fact.slot, fact.refill - 1) in slots
        slots.add((fact.slot, fact.refill))
    first = sorted(slot for slot, refill in slots if refill == 0)
    assert first == list(range(len(first)))


@settings(max_examples=60, deadline=None)
@given(stories, chances)
def test_phases_come_in_order(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    order = ["starting", "before", "train", "publishing", "after", "done"]
    planner = Planner(story.rules)
    phases = [planner.phase]
    for kind, fact in story.facts:
        apply(planner, kind, fact)
        phases.append(planner.phase)
        if isinstance(fact, GroupAdmitted):
            assert fact.purpose == (EVAL if planner.phase in ("before", "after") else TRAIN)
    if phases[-1] == "starved":
        assert order[-1] not in phases
        phases = [phase for phase in phases if phase != "starved"]
    assert all(order.index(left) <= order.index(right) for left, right in pairwise(phases))


@settings(max_examples=60, deadline=None)
@given(stories, chances, st.randoms())
def test_a_planner_made_anew_from_the_streams_wants_the_same(seed: int, chance: Chances, draw: random.Random) -> None:
    """The scheduler folds PLAN first, then OUTCOMES and POLICY side by side."""
    story = played(seed, chance)
    cut = draw.randint(0, len(story.facts))
    as_lived = Planner(story.rules)
    for kind, fact in story.facts[:cut]:
        apply(as_lived, kind, fact)
    anew = Planner(story.rules)
    plan = [each for each in story.facts[:cut] if each[0] == "admitted"]
    outcomes = [each for each in story.facts[:cut] if each[0] == "ended"]
    policy = [each for each in story.facts[:cut] if each[0] in ("published", "trained")]
    for kind, fact in plan:
        apply(anew, kind, fact)
    while outcomes or policy:
        source = draw.choice([each for each in (outcomes, policy) if each])
        kind, fact = source.pop(0)
        apply(anew, kind, fact)
    assert anew.phase == as_lived.phase
    assert anew.wanted() == as_lived.wanted()
    assert anew.n_in_flight == as_lived.n_in_flight


class Restarted:
    """A planner that is made anew again and again: PLAN in order with the folds in it, what is left of OUTCOMES, POLICY."""

    def __init__(self, rules: PlanRules) -> None:
        self.rules = rules
        self.planner = Planner(rules)
        self.plan: list[tuple[str, object]] = []
        self.outcomes: list[tuple[int, Outcome]] = []
        self.policy: list[tuple[str, object]] = []
        self.watermark = 0

    def tell(self, kind: str, fact: object) -> None:
        """A fact."""
        apply(self.planner, kind, fact)
        if kind == "ended" and isinstance(fact, tuple):
            self.outcomes.append(fact)
        else:
            (self.plan if kind == "admitted" else self.policy).append((kind, fact))

    def fold(self) -> None:
        """Write PlanFolded."""
        folded = self.planner.fold("f", 0, "r")
        self.watermark = folded.watermark
        self.plan.append(("folded", msgspec.msgpack.decode(msgspec.msgpack.encode(folded), type=PlanFolded)))

    def purge(self, up_to: int) -> None:
        """The recorder purges OUTCOMES."""
        self.outcomes = [each for each in self.outcomes if each[0] > min(up_to, self.watermark)]

    def restart(self) -> None:
        """The scheduler dies and reads its streams."""
        self.planner = Planner(self.rules)
        for kind, fact in self.plan:
            if isinstance(fact, PlanFolded):
                self.planner.restore(fact)
            else:
                apply(self.planner, kind, fact)
        for fact in self.outcomes:
            self.planner.ended(*fact)
        for kind, fact in self.policy:
            apply(self.planner, kind, fact)


def facets(planner: Planner) -> dict[str, object]:
    """All that follows from a planner's state."""
    return {
        "phase": planner.phase,
        "wanted": planner.wanted(),
        "in flight": planner.n_in_flight,
        "evaluations": planner.evaluations,
        "folded": planner.fold("f", 0, "r"),
    }


def with_late_seconds(story: Story, draw: random.Random) -> list[tuple[str, object]]:
    """The facts of a story, its outcomes numbered anew, with second outcomes of groups that are closed in between."""
    told: list[tuple[str, object]] = []
    ended: dict[str, list[Outcome]] = {}
    sequence = 0
    for kind, fact in story.facts:
        if isinstance(fact, tuple) and isinstance(fact[1], Outcome):
            sequence += draw.choice([1, 1, 2])
            ended.setdefault(fact[1].group, []).append(fact[1])
            told.append((kind, (sequence, fact[1])))
        else:
            told.append((kind, fact))
        closed = [each for outcomes in ended.values() for each in outcomes if len(outcomes) == each.members]
        if closed and draw.random() < 0.1:
            sequence += 1
            told.append(("ended", (sequence, draw.choice(closed))))
    return told


@settings(max_examples=120, deadline=None)
@given(stories, chances, st.randoms())
def test_a_planner_without_the_purged_outcomes_is_the_one_that_folded_everything(
    seed: int, chance: Chances, draw: random.Random
) -> None:
    story = played(seed, chance)
    as_lived, restarted = Planner(story.rules), Restarted(story.rules)
    for kind, fact in with_late_seconds(story, draw):
        apply(as_lived, kind, fact)
        restarted.tell(kind, fact)
        match draw.randint(0, 9):
            case 0:
                restarted.fold()
            case 1:
                restarted.purge(draw.randint(0, as_lived.folded))
            case 2:
                restarted.restart()
                assert facets(restarted.planner) == facets(as_lived)
            case _:
                pass
    restarted.restart()
    assert facets(restarted.planner) == facets(as_lived)
    assert as_lived.phase == story.end, "late seconds change nothing"


def test_what_is_written_of_a_long_run_stays_small() -> None:
    """Nothing in it grows with the run but the gaps between what is settled."""
    rules = PlanRules(
        steps=200,
        group_size=4,
        ledger=LedgerRules(groups_per_step=4, max_refills=1, eta=2),
        max_groups_in_flight=12,
        max_empty_steps=50,
        n_eval=0,
        evaluations=(),
    )
    story = Story(rules, Chances(), 1).run()
    planner, sizes = Planner(rules), []
    for kind, fact in story.facts:
        apply(planner, kind, fact)
        if kind == "trained":
            sizes.append(len(msgspec.msgpack.encode(planner.fold("f", 0, "r"))))
    assert len(sizes) == 200
    assert max(sizes[100:]) <= 1.3 * max(sizes[20:100])
    assert max(sizes) < 4000


LEDGER = LedgerRules(groups_per_step=2, max_refills=1, eta=1)
RULES = PlanRules(steps=3, group_size=2, ledger=LEDGER, max_groups_in_flight=3, max_empty_steps=1, n_eval=0, evaluations=())


def test_a_refill_goes_before_new_slots_and_within_the_bound() -> None:
    planner = Planner(RULES)
    assert planner.wanted() == []
    planner.published(0)
    first = [admitted_of(each, 0) for each in planner.wanted()]
    assert [(group.group, group.refill) for group in first] == [("t-0-0", 0), ("t-1-0", 0), ("t-2-0", 0)]
    for group in first:
        planner.admitted(group)
    assert planner.wanted() == []
    for member in range(2):
        planner.ended(1 + member, outcome_of(first[1], member, "graded", 1.0, 0))
    (refill,) = planner.wanted()
    assert (refill.group, refill.refill_of, refill.ordinal) == ("t-1-1", "t-1-0", 3)
    planner.admitted(admitted_of(refill, 0))
    assert planner.wanted() == []


def test_empty_steps_in_a_row_end_a_run() -> None:
    planner = Planner(RULES)
    planner.published(0)
    planner.trained(0, empty=True)
    planner.trained(0, empty=True)
    assert planner.phase == "train"
    planner.trained(1, empty=True)
    assert planner.phase == "starved"
    assert planner.wanted() == []
    fresh = Planner(RULES)
    fresh.published(0)
    fresh.trained(0, empty=True)
    fresh.trained(1, empty=False)
    fresh.trained(2, empty=True)
    assert fresh.phase == "publishing"
    fresh.published(3)
    assert fresh.phase == "done"
