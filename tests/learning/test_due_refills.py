"""A refill that is due when the outcomes behind it are purged is still admitted, once."""

from asearch.learning.ledger import LedgerRules
from asearch.learning.planner import Planner, PlanRules
from tests.learning.outcome_stories import admitted_of, outcome_of

LEDGER = LedgerRules(groups_per_step=1, max_refills=1, eta=2)
RULES = PlanRules(steps=3, group_size=2, ledger=LEDGER, max_groups_in_flight=9, max_empty_steps=9, n_eval=0, evaluations=())


def test_a_refill_that_is_due_outlives_the_outcomes() -> None:
    planner = Planner(RULES)
    planner.published(0)
    groups = [admitted_of(each, 0) for each in planner.wanted()]
    for group in groups:
        planner.admitted(group)
    flat, kept = groups[0], groups[1]
    told = [(flat, 0, 1.0), (flat, 1, 1.0), (kept, 0, 0.0), (kept, 1, 1.0)]
    for sequence, (group, member, reward) in enumerate(told, 1):
        planner.ended(sequence, outcome_of(group, member, "graded", reward, 0))
    assert [each.group for each in planner.wanted()] == ["t-0-1"]
    folded = planner.fold("f", 0, "r")
    assert folded.watermark == 4
    anew = Planner(RULES)
    for group in groups:
        anew.admitted(group)
    anew.restore(folded)
    anew.published(0)
    assert [(each.group, each.refill_of) for each in anew.wanted()] == [("t-0-1", "t-0-0")]
    planner.admitted(admitted_of(planner.wanted()[0], 0))
    anew.admitted(admitted_of(anew.wanted()[0], 0))
    assert planner.wanted() == anew.wanted() == []
