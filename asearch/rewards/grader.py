"""Rewards of finished episodes, by name.

A grader is a pure function of what the model generated, the tool log and the answer key. No page text is within its reach, so a
page that contains `<answer>` cannot change a reward.
"""

import math
from collections.abc import Callable

import msgspec

from asearch.errors import ConfigError, GradingError
from asearch.registry import Registry
from asearch.rewards.answer import AUG_WEIGHT, Score, best, best_with_aug, cover_text, cover_words, exact_match, f1
from asearch.rewards.format import format_score, last_answer
from asearch.rewards.normalise import ASEARCHER, NORMALISERS, SQUAD, Normaliser
from asearch.rewards.overlong import overlong
from schemas.records import AnswerKey, Reward, RewardItem, ToolUse


class GradeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that a grader reads of an episode. `answer` was parsed from the generations by the episode's protocol."""

    generations: list[str]
    answer: str | None
    tool_log: list[ToolUse] = []
    n_tokens: int = 0
    """Tokens of all generations."""


class RewardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which reward, and its parameters. `normalise` None: the variant that the reward's source uses."""

    name: str = "f1_format"
    normalise: str | None = None
    aug_weight: float = AUG_WEIGHT
    overlong_tokens: int = 0
    """Generated tokens of an episode at which the soft overlong punishment is whole; 0 is no punishment."""
    overlong_cache_tokens: int = 0
    """Over how many tokens before that it grows."""

    def __post_init__(self) -> None:
        REWARDS.get(self.name)
        if self.normalise is not None:
            NORMALISERS.get(self.normalise)
        if not 0.0 <= self.aug_weight <= 1.0:
            raise ConfigError(f"rewards.aug_weight must be in [0, 1], not {self.aug_weight}.")
        if self.overlong_tokens < 0:
            raise ConfigError(f"rewards.overlong_tokens must be 0 or more, not {self.overlong_tokens}.")
        if self.overlong_tokens and not 1 <= self.overlong_cache_tokens <= self.overlong_tokens:
            raise ConfigError(
                f"rewards.overlong_cache_tokens must be from 1 to rewards.overlong_tokens ({self.overlong_tokens}), "
                f"not {self.overlong_cache_tokens}."
            )


RewardFunction = Callable[[GradeRecord, AnswerKey, RewardConfig], list[RewardItem]]
"""The parts of a reward; its value is the sum of their values times their weights, and of the punishment of length."""

REWARDS: Registry[RewardFunction] = Registry("reward")


def grade(record: GradeRecord, key: AnswerKey, config: RewardConfig) -> Reward:
    """The verdict on an episode.

    Raises GradingError: no references, an answer that the model did not generate, a value that is not a finite number.
    """
    if not key.answers:
        raise GradingError(f"Task {key.task!r} has no answers to compare with. Give its line an `answer`.")
    _refuse_foreign_answer(record, key)
    items = REWARDS.get(config.name)(record, key, config)
    if config.overlong_tokens:
        punishment = overlong(record.n_tokens, config.overlong_tokens, config.overlong_cache_tokens)
        items = [*items, RewardItem(name="overlong", value=punishment)]
    value = sum(item.value * item.weight for item in items)
    if not all(map(math.isfinite, [value, *(x for item in items for x in (item.value, item.weight))])):
        raise GradingError(f"The reward {config.name!r} of task {key.task!r} is not finite: {items}.")
    return Reward(value=value, items=items)


def is_correct(answer: str | None, key: AnswerKey) -> bool:
    """Whether an answer counts as right in accuracy reports: exact match after SQuAD normalisation, with any reference."""
    return best(exact_match, answer, [*key.answers, *key.aug_answers], SQUAD) == 1.0


def _refuse_foreign_answer(record: GradeRecord, key: AnswerKey) -> None:
    answer = (record.answer or "").strip()
    if answer and not any(answer in generation for generation in record.generations):
        raise GradingError(f"The answer to task {key.task!r} is not in what the model generated, so it is not graded.")


def _with_forced_opening(record: GradeRecord) -> list[str]:
    """The generations; a last one that only completes an answer which the protocol opened for it gets its opening tag back.

    Without this a forced answer could never be well formed. A model gains nothing by leaving the tag out itself: its protocol
    then finds no answer.
    """
    *before, last = record.generations or [""]
    forced = record.answer is not None and last_answer([last]) is None and last_answer([f"<answer>{last}"]) is not None
    return [*before, f"<answer>{last}"] if forced else record.generations


@REWARDS.register("f1_format")
def f1_format(record: GradeRecord, key: AnswerKey, config: RewardConfig) -> list[RewardItem]:
    """ASearcher's reward for base models: F1 × format (Gao et al. 2025, §3.4)."""
    formed = format_score(_with_forced_opening(record))
    score = _scored(f1, ASEARCHER, record, key, config)
    return [RewardItem(name="f1", value=score, weight=formed), RewardItem(name="format", value=formed, weight=0.0)]


def answer_reward(name: str, score: Score, default: Normaliser) -> RewardFunction:
    """A reward of one item: a score of the answer, normalised with `default` unless the configuration says otherwise."""

    def items(record: GradeRecord, key: AnswerKey, config: RewardConfig) -> list[RewardItem]:
        return [RewardItem(name=name, value=_scored(score, default, record, key, config))]

    return items


def _scored(score: Score, default: Normaliser, record: GradeRecord, key: AnswerKey, config: RewardConfig) -> float:
    variant = NORMALISERS.get(config.normalise) if config.normalise else default
    return best_with_aug(score, record.answer, key.answers, key.aug_answers, variant, config.aug_weight)


REWARDS.register("f1")(answer_reward("f1", f1, ASEARCHER))
REWARDS.register("em")(answer_reward("em", exact_match, SQUAD))
REWARDS.register("cem")(answer_reward("cem", cover_words, SQUAD))
REWARDS.register("cem_text")(answer_reward("cem_text", cover_text, SQUAD))
