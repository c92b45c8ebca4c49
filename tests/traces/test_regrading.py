"""Regrading: new advantages by group, and what a reward would have changed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.learning.advantages import estimators
from asearch.traces.regrading import RegradedEpisode, Regrading, rank_correlation
from schemas.events import AnyOutcome, EpisodeDropped, EpisodeGraded
from schemas.records import Reward

Story = dict[str, list[tuple[float | None, float | None]]]


def outcome(group: str, member: int, members: int, reward: float | None, purpose: str = "train") -> AnyOutcome:
    fields: dict[str, Any] = {
        "id": f"{group}-{member}",
        "episode": f"{group}-{member}",
        "group": group,
        "member": member,
        "members": members,
    }
    fields |= {"slot": 0, "purpose": purpose, "task": group}
    if reward is None:
        return EpisodeDropped(**fields, reason="deadline")
    numbers = dict.fromkeys(("n_turns", "n_tokens_generated", "n_searches", "n_reads"), 0)
    return EpisodeGraded(**fields, **numbers, reward=Reward(value=reward), trajectory=None, status="answered", answer="x")


def told(story: Story, purpose: str = "train") -> tuple[dict[str, RegradedEpisode], Regrading]:
    """Regrade groups of (old, new) rewards, members of all groups mixed."""
    regrading = Regrading(estimators.get("grpo_mean"), estimators.get("grpo_mean"))
    rows: list[RegradedEpisode] = []
    for member in range(max(map(len, story.values()))):
        for group, rewards in story.items():
            if member < len(rewards):
                old, new = rewards[member]
                rows += regrading.take(
                    outcome(group, member, len(rewards), old, purpose), None if new is None else Reward(value=new)
                )
    rows += regrading.finish()
    return {row.episode: row for row in rows}, regrading


STORY: Story = {
    "flips": [(1.0, 0.0), (0.0, 1.0)],
    "gains": [(0.5, 0.0), (0.5, 1.0), (None, None)],
    "loses": [(0.0, 0.3), (1.0, 0.3)],
    "keeps": [(0.0, 0.0), (1.0, 0.8)],
}


def test_advantages_signs_and_signal() -> None:
    rows, regrading = told(STORY)
    summary = regrading.summary
    assert (rows["flips-0"].old_advantage, rows["flips-0"].new_advantage) == (0.5, -0.5)
    assert (rows["gains-1"].old_advantage, rows["gains-1"].new_advantage) == (0.0, 0.5)
    assert (rows["keeps-1"].old_advantage, rows["keeps-1"].new_advantage) == (0.5, 0.4)
    assert (summary.episodes, summary.train_episodes, summary.changed, summary.groups) == (8, 8, 7, 4)
    assert (summary.sign_flips, summary.sign_flip_share) == (2, 0.25)
    assert (summary.gained_signal, summary.lost_signal, summary.kept_signal) == (1, 1, 2)
    assert summary.mean_old_reward == pytest.approx(0.5)
    assert summary.mean_new_reward == pytest.approx(3.4 / 8)


def test_evaluations_have_rewards_and_no_advantages() -> None:
    rows, regrading = told({"e": [(1.0, 0.0)], "f": [(0.0, 1.0)]}, purpose="eval")
    assert [row.new_advantage for row in rows.values()] == [0.0, 0.0]
    assert (regrading.summary.episodes, regrading.summary.train_episodes, regrading.summary.groups) == (2, 0, 0)
    assert regrading.summary.sign_flip_share is None
    assert regrading.summary.rank_correlation == pytest.approx(-1.0)


VALUES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30)


def ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


@given(VALUES)
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    ours = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(float(np.corrcoef(ranks(first), ranks(second))[0, 1]), abs=1e-9)
