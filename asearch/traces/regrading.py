"""Another reward for episodes that have one: new rewards and advantages by group, and what they would have changed.

Advantages are those of the trainer's estimator over the graded members of a group; what a trainer may do to them afterwards over
a whole batch (`trainer.normalise_advantages`) is left out.
"""

from array import array
from collections.abc import Sequence

import msgspec

from asearch.errors import GradingError
from asearch.learning.advantages import Estimator
from asearch.learning.ledger import SIGNAL
from asearch.rewards.grader import GradeRecord, RewardConfig, grade
from asearch.traces.record import EpisodeRecord
from schemas.events import AnyOutcome, EpisodeGraded
from schemas.records import AnswerKey, Reward, RewardItem


class RegradedEpisode(msgspec.Struct, kw_only=True):
    """One row of the table."""

    episode: str
    group: str
    member: int
    purpose: str
    label: str
    task: str
    answer: str | None
    correct: bool
    old_reward: float
    new_reward: float
    old_advantage: float = 0.0
    new_advantage: float = 0.0
    old_items: list[RewardItem] = []
    new_items: list[RewardItem] = []


def regrade(record: EpisodeRecord, key: AnswerKey, config: RewardConfig) -> Reward:
    """The verdict of a reward on a finished episode. Raises GradingError, also where its texts are gone."""
    finished, generated = record.finished, record.generated
    if finished is None or generated is None:
        raise GradingError(f"what episode {record.episode} generated is not recorded in full, so it cannot be graded")
    graded = GradeRecord(
        generations=generated, answer=finished.answer, tool_log=finished.tool_log, n_tokens=finished.n_tokens_generated
    )
    return grade(graded, key, config)


def row_of(outcome: EpisodeGraded, new: Reward) -> RegradedEpisode:
    """The row of an episode, without advantages."""
    return RegradedEpisode(
        episode=outcome.episode,
        group=outcome.group,
        member=outcome.member,
        purpose=outcome.purpose,
        label=outcome.label,
        task=outcome.task,
        answer=outcome.answer,
        correct=outcome.correct,
        old_reward=outcome.reward.value,
        new_reward=new.value,
        old_items=outcome.reward.items,
        new_items=new.items,
    )


class Summary(msgspec.Struct, kw_only=True):
    """What a reward would have changed. Advantages and groups are those of training episodes."""

    episodes: int = 0
    """Graded episodes that have both rewards."""
    refused: int = 0
    """Those that the new reward could not grade."""
    refusal: str = ""
    """Why, of the first one."""
    mean_old_reward: float | None = None
    mean_new_reward: float | None = None
    changed: int = 0
    """Episodes whose reward differs."""
    rank_correlation: float | None = None
    """Spearman's, of the rewards of all episodes; None where one of the two never varies."""
    train_episodes: int = 0
    sign_flips: int = 0
    """Training episodes whose advantage changes from above to below 0, or the other way round."""
    sign_flip_share: float | None = None
    groups: int = 0
    """Groups of training, incomplete ones included."""
    gained_signal: int = 0
    """Groups whose rewards were alike and would not be."""
    lost_signal: int = 0
    kept_signal: int = 0


class _Group:
    """The outcomes of a group that have been seen."""

    def __init__(self) -> None:
        self.n_seen = 0
        self.rows: list[RegradedEpisode] = []


class Regrading:
    """Takes the episodes of a run in any order; a group is given back, with advantages, once all its members were seen."""

    def __init__(self, old: Estimator, new: Estimator) -> None:
        """The estimators of the old and of the new advantages."""
        self.summary = Summary()
        self._estimators = old, new
        self._open: dict[str, _Group] = {}
        self._old, self._new = array("d"), array("d")

    def take(self, outcome: AnyOutcome, new: Reward | None) -> list[RegradedEpisode]:
        """One more outcome; `new` is None for an episode that has no new reward. The rows of its group, if that is complete."""
        group = self._open.setdefault(outcome.group, _Group())
        group.n_seen += 1
        if isinstance(outcome, EpisodeGraded) and new is not None:
            group.rows.append(row_of(outcome, new))
        if group.n_seen < outcome.members:
            return []
        del self._open[outcome.group]
        return self._close(group)

    def refuse(self, why: str) -> None:
        """An episode could not be graded."""
        self.summary.refused += 1
        self.summary.refusal = self.summary.refusal or why

    def finish(self) -> list[RegradedEpisode]:
        """The rows of the groups that never became complete; `summary` is complete afterwards."""
        rows = [row for group in self._open.values() for row in self._close(group)]
        self._open.clear()
        summary, n = self.summary, len(self._old)
        summary.episodes = n
        summary.mean_old_reward = sum(self._old) / n if n else None
        summary.mean_new_reward = sum(self._new) / n if n else None
        summary.rank_correlation = rank_correlation(self._old, self._new)
        summary.sign_flip_share = summary.sign_flips / summary.train_episodes if summary.train_episodes else None
        return rows

    def _close(self, group: _Group) -> list[RegradedEpisode]:
        rows = sorted(group.rows, key=lambda row: row.member)
        old, new = [row.old_reward for row in rows], [row.new_reward for row in rows]
        self._old.extend(old)
        self._new.extend(new)
        self.summary.changed += sum(a != b for a, b in zip(old, new, strict=True))
        if rows and rows[0].purpose == "train":
            estimate_old, estimate_new = self._estimators
            (before,), (after,) = estimate_old([old]), estimate_new([new])
            for row, a, b in zip(rows, before, after, strict=True):
                row.old_advantage, row.new_advantage = a, b
            self._count(rows)
        return rows

    def _count(self, rows: list[RegradedEpisode]) -> None:
        summary = self.summary
        summary.groups += 1
        summary.train_episodes += len(rows)
        summary.sign_flips += sum(row.old_advantage * row.new_advantage < 0 for row in rows)
        had, has = (_has_signal([getattr(row, name) for row in rows]) for name in ("old_reward", "new_reward"))
        summary.gained_signal += has and not had
        summary.lost_signal += had and not has
        summary.kept_signal += had and has


def _has_signal(rewards: list[float]) -> bool:
    return max(rewards) - min(rewards) > SIGNAL


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing the mean of their ranks; None where one side never varies."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return covariance / spread**0.5 if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks, at = [0.0] * len(values), 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for place in order[at:end]:
            ranks[place] = (at + end + 1) / 2
        at = end
    return ranks
