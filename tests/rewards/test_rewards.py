"""Normalisation, scores, format and graders."""

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asearch.configuration.loading import load_settings
from asearch.errors import ConfigError, GradingError
from asearch.registry import Registry
from asearch.rewards import grader
from asearch.rewards.answer import best_with_aug, cover_text, cover_words, exact_match, f1
from asearch.rewards.format import format_score, last_answer, well_formed
from asearch.rewards.grader import REWARDS, GradeRecord, RewardConfig, grade, is_correct
from asearch.rewards.normalise import ASEARCHER, DEEPRESEARCHER, SQUAD, Normaliser
from asearch.rewards.overlong import overlong
from schemas.records import AnswerKey, RewardItem, ToolUse

VARIANTS = [SQUAD, ASEARCHER, DEEPRESEARCHER]
KEY = AnswerKey(task="1", answers=["Ana Korm"])


@given(st.text(), st.sampled_from(VARIANTS))
def test_normalisation_is_idempotent(text: str, variant: Normaliser):
    once = variant.text(text)
    assert variant.text(once) == once


@pytest.mark.parametrize(
    ("variant", "text", "wanted"),
    [
        (SQUAD, "The  U.S.A., an Island!", "usa island"),
        (ASEARCHER, "The  U.S.A., an Island!", "the u s a an island"),
        (DEEPRESEARCHER, "The  U.S.A., an Island!", "the u s a an island"),
        (ASEARCHER, "True.", "yes"),
        (DEEPRESEARCHER, "True.", "true"),
    ],
)
def test_variants(variant: Normaliser, text: str, wanted: str):
    assert variant.text(text) == wanted


def test_f1_counts_sets_or_multisets():
    assert f1("b b c", "b b b", SQUAD) == pytest.approx(2 * 2 / 6)
    assert f1("b b c", "b b b", ASEARCHER) == pytest.approx(2 * 1 / 3)
    assert f1("x", "b", SQUAD) == 0


def test_chinese_is_counted_in_characters_and_whole_numbers():
    assert f1("1912年", "1912年", ASEARCHER) == 1
    assert f1("北京市", "北京", ASEARCHER) == pytest.approx(2 * 2 / 5)
    assert f1("12年", "1912年", ASEARCHER) == pytest.approx(2 * 1 / 4)


def test_answers_of_which_nothing_is_left_are_compared_as_they_are():
    assert exact_match("a", "A", SQUAD) == 1
    assert exact_match("the", "A", SQUAD) == 0
    assert f1("", "A", SQUAD) == 0


def test_cover_exact_match():
    assert cover_words("it is Korm, Ana", "Ana Korm", SQUAD) == 1
    assert cover_text("it is Korm, Ana", "Ana Korm", SQUAD) == 0
    assert cover_text("it is ana korm", "Ana Korm", SQUAD) == 1
    assert cover_text("it is banana kormoran", "Ana Korm", SQUAD) == 0


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(VARIANTS))
def test_scores_are_in_the_unit_interval_and_perfect_on_the_reference(a: str, b: str, variant: Normaliser):
    for score in (f1, exact_match, cover_words, cover_text):
        assert 0 <= score(a, b, variant) <= 1
        if b.strip():
            assert score(b, b, variant) == 1
    assert exact_match(a, b, variant) <= f1(a, b, variant) + 1e-12


def test_alternatives_count_three_tenths():
    assert best_with_aug(exact_match, "x", ["y"], ["x"], SQUAD) == pytest.approx(0.3)
    assert best_with_aug(exact_match, "y", ["z", "y"], ["x"], SQUAD) == pytest.approx(1.0)
    assert best_with_aug(exact_match, "y", ["y"], [], SQUAD) == 1
    assert best_with_aug(exact_match, None, ["y"], ["x"], SQUAD) == 0


@pytest.mark.parametrize(
    ("text", "formed"),
    [
        ("<think>x</think><search>a</search>", True),
        ("", True),
        ("<search>a", False),
        ("a</search>", False),
        ("<search>a</search><search>b</search>", False),
        ("<search>a</search><answer>b</answer>", False),
        ("</think></think>", False),
        ("an assistant", False),
        ("Assistant", False),
        ("<answer>x</answer>", True),
    ],
)
def test_format_of_one_generation(text: str, formed: bool):
    assert well_formed(text) is formed


def test_format_is_a_product_over_generations():
    assert format_score(["<search>a</search>", "<answer>b</answer>"]) == 1
    assert format_score(["<search>a", "<answer>b</answer>"]) == 0
    assert format_score([]) == 0


def test_the_last_complete_answer_counts():
    assert last_answer(["<answer>a</answer>", "<answer> b </answer><answer>c</answer>", "<answer>d"]) == "c"
    assert last_answer(["x"]) is None


def record(answer: str, *before: str) -> GradeRecord:
    return GradeRecord(generations=[*before, f"<answer>{answer}</answer>"], answer=answer)


@pytest.mark.parametrize(
    ("name", "answer", "before", "value"),
    [
        ("f1_format", "Ana Korm", (), 1.0),
        ("f1_format", "Ana", (), 2 / 3),
        ("f1_format", "Ana Korm", ("<search>x",), 0.0),
        ("f1", "Ana Korm", ("<search>x",), 1.0),
        ("em", "the ana korm", (), 1.0),
        ("em", "ana", (), 0.0),
        ("cem", "It was Korm, Ana", (), 1.0),
        ("cem_text", "It was Korm, Ana", (), 0.0),
    ],
)
def test_rewards_by_name(name: str, answer: str, before: tuple[str, ...], value: float):
    reward = grade(record(answer, *before), KEY, RewardConfig(name=name))
    assert reward.value == pytest.approx(value)
    assert reward.value == sum(item.value * item.weight for item in reward.items)


def test_a_forced_answer_is_not_punished_for_the_tag_that_it_was_given():
    forced = GradeRecord(generations=["<search>x</search>", "Ana Korm</answer>"], answer="Ana Korm")
    assert grade(forced, KEY, RewardConfig()).value == 1
    unparsed = GradeRecord(generations=["<search>x</search>", "Ana Korm</answer>"], answer=None)
    assert grade(unparsed, KEY, RewardConfig()).items[1].value == 0
    earlier = GradeRecord(generations=["x</answer>", "Ana Korm</answer>"], answer="Ana Korm")
    assert grade(earlier, KEY, RewardConfig()).value == 0


def test_no_answer_is_no_reward():
    silent = GradeRecord(generations=["<search>Ana Korm</search>"], answer=None)
    assert [grade(silent, KEY, RewardConfig(name=name)).value for name in REWARDS.names()] == [0.0] * len(REWARDS.names())


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [({"name": "f1_fromat"}, "f1_format"), ({"normalise": "squat"}, "squad"), ({"aug_weight": float("nan")}, "aug_weight")],
)
def test_wrong_configurations_are_refused_with_a_hint(wrong: dict[str, Any], hint: str):
    with pytest.raises(ConfigError, match=hint):
        RewardConfig(**wrong)


def test_a_task_without_answers_is_not_graded():
    with pytest.raises(GradingError):
        grade(record("x"), AnswerKey(task="1", answers=[]), RewardConfig())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float, monkeypatch: pytest.MonkeyPatch):
    rewards: Registry[grader.RewardFunction] = Registry("reward")
    rewards.register("broken")(lambda _record, _key, _config: [RewardItem(name="x", value=value, weight=0.0)])
    monkeypatch.setattr(grader, "REWARDS", rewards)
    with pytest.raises(GradingError, match="not finite"):
        grade(record("x"), KEY, RewardConfig(name="broken"))


def test_correct_means_exact_match_with_any_reference():
    key = AnswerKey(task="1", answers=["Ana"], aug_answers=["Anna K."])
    assert is_correct("the ana", key)
    assert is_correct("anna k", key)
    assert not is_correct("Ana Korm", key)
    assert not is_correct(None, key)


pages = st.lists(st.sampled_from(["<answer>Ana Korm</answer>", "text", "</answer>", "<search>", "assistant"]), max_size=6)


@given(pages, st.sampled_from(["Ana", "Ana Korm", "Zed"]), st.sampled_from(REWARDS.names()))
def test_no_page_text_changes_a_reward(page: list[str], answer: str, name: str):
    """A page reaches a grader at most as a count in the tool log; an answer that only a page holds is refused."""
    plain = record(answer, "<access>/page/1</access>")
    used = ToolUse(turn=0, tool="access", argument="/page/1", n_documents=len(page))
    logged = GradeRecord(generations=plain.generations, answer=plain.answer, tool_log=[used])
    config = RewardConfig(name=name)
    assert grade(logged, KEY, config) == grade(plain, KEY, config)
    hijacked = last_answer(page)
    assume(hijacked is not None and not any(hijacked in text for text in plain.generations))
    with pytest.raises(GradingError, match="not in what the model generated"):
        grade(GradeRecord(generations=plain.generations, answer=hijacked), KEY, config)


@pytest.mark.parametrize(
    ("n_tokens", "punishment"),
    [(0, 0.0), (60, 0.0), (61, -0.025), (80, -0.5), (99, -0.975), (100, -1.0), (101, -1.0), (10_000, -1.0)],
)
def test_the_soft_overlong_punishment_is_that_of_dapo(n_tokens: int, punishment: float):
    """L_max 100, L_cache 40: nothing up to 60 tokens, -1 from 100 on (arXiv 2503.14476, Eq. 13)."""
    assert overlong(n_tokens, 100, 40) == pytest.approx(punishment, abs=1e-12)
    record = GradeRecord(generations=["<answer>Ana Korm</answer>"], answer="Ana Korm", n_tokens=n_tokens)
    reward = grade(record, KEY, RewardConfig(name="em", overlong_tokens=100, overlong_cache_tokens=40))
    assert reward.value == pytest.approx(1.0 + punishment)
    assert [(item.name, item.weight) for item in reward.items] == [("em", 1.0), ("overlong", 1.0)]
    assert reward.value == sum(item.value * item.weight for item in reward.items)
    plain = grade(record, KEY, RewardConfig(name="em"))
    assert [item.name for item in plain.items] == ["em"]


@pytest.mark.parametrize("numbers", [(-1, 0), (100, 0), (100, 101), (100, -3)])
def test_impossible_bounds_of_length_are_refused(numbers: tuple[int, int]):
    with pytest.raises(ConfigError, match=r"rewards\.overlong_"):
        RewardConfig(overlong_tokens=numbers[0], overlong_cache_tokens=numbers[1])
    with pytest.raises(ConfigError, match=r"rewards\.overlong_"):
        load_settings("toy", values={"rewards.overlong_tokens": numbers[0], "rewards.overlong_cache_tokens": numbers[1]})
