import random
from collections import Counter
from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from asearch.configuration.settings import RunSettings
from asearch.learning.ledger import Ledger, LedgerRules, Refill, StepClosed, fold_all
from asearch.learning.planner import EVAL
from asearch.learning.rules import ledger_rules
from schemas.events import EpisodeGraded, Outcome
from tests.learning.outcome_stories import Chances, Story, admitted_of, outcome_of, rules_of

stories = st.integers(0, 10**6)
chances = st.builds(
    Chances,
    dropped=st.sampled_from([0.0, 0.1, 0.4]),
    dead=st.sampled_from([0.0, 0.1]),
    flat=st.sampled_from([0.0, 0.3, 1.0]),
)


def played(seed: int, chance: Chances) -> Story:
    return Story(rules_of(random.Random(seed)), chance, seed).run()


def trained(story: Story) -> list[tuple[int, Outcome]]:
    return [(sequence, outcome) for sequence, outcome in story.outcomes if outcome.purpose != EVAL]


@settings(max_examples=60, deadline=None)
@given(stories, chances)
def test_every_graded_episode_is_counted_discarded_or_queued(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    ledger = Ledger(story.rules.ledger)
    graded = set[int]()
    for sequence, outcome in trained(story):
        ledger.fold(sequence, outcome)
        if isinstance(outcome, EpisodeGraded):
            graded.add(sequence)
        settled = Counter(sequence for kind in (ledger.counted, *ledger.discarded.values()) for sequence in kind)
        assert all(times == 1 for times in settled.values())
        assert set(settled) <= graded
        assert len(graded) == len(settled) + ledger.n_queued
        assert not set(ledger.ungraded) & graded


@settings(max_examples=60, deadline=None)
@given(stories, chances)
def test_a_step_closes_with_exactly_its_slots(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    rules = story.rules.ledger
    groups = story.groups
    for number, closed in enumerate(story.closed):
        assert closed.step == number
        resolved = [
            verdict.group
            for verdict in closed.verdicts
            if verdict.reason is None or groups[verdict.group].refill >= rules.max_refills
        ]
        assert len(resolved) == rules.groups_per_step
        assert len({groups[name].slot for name in resolved}) == rules.groups_per_step
        kept = [verdict for verdict in closed.verdicts if verdict.reason is None]
        assert [verdict.group for verdict in kept] == [group[0].group for group in closed.groups]
        for group in closed.groups:
            assert [outcome.member for outcome in group] == sorted(outcome.member for outcome in group)
            assert len(group) >= (group[0].members if rules.min_graded is None else rules.min_graded)
    verdicts = [verdict.group for closed in story.closed for verdict in closed.verdicts]
    assert len(verdicts) == len(set(verdicts))


@settings(max_examples=60, deadline=None)
@given(stories, chances)
def test_refills_are_bounded_and_replace_a_discarded_group_once(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    effects = fold_all(Ledger(story.rules.ledger), trained(story))
    refills = [effect for effect in effects if isinstance(effect, Refill)]
    assert len({(refill.slot, refill.refill) for refill in refills}) == len(refills)
    assert all(1 <= refill.refill <= story.rules.ledger.max_refills for refill in refills)
    for refill in refills:
        replaced = story.groups[refill.refill_of]
        assert (replaced.slot, replaced.refill) == (refill.slot, refill.refill - 1)
    admitted = {(group.slot, group.refill) for group in story.groups.values() if group.refill}
    assert admitted <= {(refill.slot, refill.refill) for refill in refills}


@settings(max_examples=60, deadline=None)
@given(stories, chances)
def test_a_fold_from_any_snapshot_comes_to_the_same_steps(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    outcomes = trained(story)
    for closed in story.closed:
        restored = Ledger(story.rules.ledger, closed.snapshot)
        assert restored.snapshot() == closed.snapshot
        again = [(sequence, outcome) for sequence, outcome in outcomes if sequence > closed.snapshot.watermark]
        later = [effect for effect in fold_all(restored, again) if isinstance(effect, StepClosed)]
        expected = story.closed[closed.step + 1 :]
        assert [(each.step, each.groups, each.verdicts) for each in later] == [
            (each.step, each.groups, each.verdicts) for each in expected
        ]
        assert [_settled(each) for each in later] == [_settled(each) for each in expected]
        assert [each.snapshot.watermark for each in later] == [each.snapshot.watermark for each in expected]


def _settled(closed: StepClosed) -> object:
    snapshot = closed.snapshot
    return (snapshot.counted, snapshot.discarded, snapshot.ungraded)


@settings(max_examples=30, deadline=None)
@given(stories, chances)
def test_an_outcome_that_is_read_again_changes_nothing(seed: int, chance: Chances) -> None:
    story = played(seed, chance)
    once, twice = Ledger(story.rules.ledger), Ledger(story.rules.ledger)
    outcomes = trained(story)
    for n, (sequence, outcome) in enumerate(outcomes):
        assert twice.fold(sequence, outcome) == once.fold(sequence, outcome)
        again_sequence, again = outcomes[n // 2]
        assert twice.fold(again_sequence, again) == []
    assert twice.snapshot() == once.snapshot()


RULES = LedgerRules(groups_per_step=2, max_refills=1, eta=1)


def fold_group(ledger: Ledger, sequence: int, slot: int, rewards: list[float | None], refill: int = 0, oldest: int = 0) -> list:
    """Fold the outcomes of one group; None is a dropped member."""
    from asearch.learning.planner import Admission

    group = admitted_of(Admission(f"t-{slot}-{refill}", "train", slot, len(rewards), 0, "", refill), 0)
    return fold_all(
        ledger,
        [
            (sequence + n, outcome_of(group, n, "dropped" if reward is None else "graded", reward or 0.0, oldest))
            for n, reward in enumerate(rewards)
        ],
    )


def test_a_step_without_a_kept_group_is_empty() -> None:
    ledger = Ledger(RULES)
    assert fold_group(ledger, 1, 0, [1.0, 1.0]) == [Refill(0, 1, "t-0-0")]
    assert fold_group(ledger, 3, 0, [0.0, 0.0], refill=1) == []
    assert fold_group(ledger, 5, 1, [None, 1.0]) == [Refill(1, 1, "t-1-0")]
    (closed,) = fold_group(ledger, 7, 1, [1.0, None], refill=1)
    assert closed.groups == ()
    assert [verdict.reason for verdict in closed.verdicts] == ["no_signal", "no_signal", "group_incomplete", "group_incomplete"]
    assert list(ledger.counted) == []
    assert sorted(ledger.discarded) == ["group_incomplete", "no_signal"]
    assert list(ledger.ungraded) == [5, 8]
    assert ledger.step == 1
    assert ledger.n_queued == 0


def test_the_rule_discard_judges_at_the_step_at_hand() -> None:
    rules = LedgerRules(groups_per_step=1, max_refills=0, eta=1, rule="discard")
    ledger = Ledger(rules)
    for slot in range(2):
        (closed,) = fold_group(ledger, 1 + 2 * slot, slot, [0.0, 1.0])
        assert closed.groups
    (closed,) = fold_group(ledger, 5, 2, [0.0, 1.0])
    assert [verdict.reason for verdict in closed.verdicts] == ["stale"]
    (closed,) = fold_group(ledger, 7, 3, [0.0, 1.0], oldest=2)
    assert closed.groups


def test_the_rules_come_from_the_run() -> None:
    run = RunSettings(groups_per_step=3, max_refills=2, eta=1, rule="keep", min_graded=2)
    rules = LedgerRules(groups_per_step=3, max_refills=2, eta=1, rule="keep", min_graded=2)
    assert ledger_rules(run) == rules
    for said in ("discard", "keep"):
        assert ledger_rules(msgspec.structs.replace(run, equal_rewards=said)) == replace(rules, equal_rewards=said)


def test_groups_of_equal_rewards_are_trained_where_the_rules_say_so() -> None:
    ledger = Ledger(replace(RULES, equal_rewards="keep"))
    assert fold_group(ledger, 1, 0, [1.0, 1.0]) == []
    (closed,) = fold_group(ledger, 3, 1, [0.0, 1.0])
    assert [verdict.reason for verdict in closed.verdicts] == [None, None]
    assert [group[0].group for group in closed.groups] == ["t-0-0", "t-1-0"]
    assert list(ledger.counted) == [1, 2, 3, 4]
    # Incomplete is incomplete.
    assert fold_group(ledger, 5, 2, [1.0, None]) == [Refill(2, 1, "t-2-0")]
