import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asearch.errors import ConfigError, TrainingError
from asearch.learning.staleness import admits, is_abandoned, segment_age, stale
from schemas.records import Version, VersionRun


def run(lineage: int, step: int, start: int, end: int) -> VersionRun:
    return VersionRun(version=Version(lineage=lineage, step=step), start=start, end=end)


def test_each_token_has_the_age_of_its_own_version() -> None:
    age = segment_age([run(0, 7, 1, 3), run(0, 9, 4, 6)], 6, 0, 10)
    assert age.staleness_T.tolist() == [-1, 3, 3, -1, 1, 1]
    assert not age.dead_lineage_T.any()


def test_tokens_of_abandoned_steps_are_counted_and_never_newer() -> None:
    # The older trainer had come to step 12 before it was replaced from its checkpoint of step 8.
    claims = [Version(lineage=0, step=0), Version(lineage=1, step=8)]
    runs = [run(0, 12, 0, 2), run(0, 8, 2, 3), run(1, 8, 3, 4)]
    age = segment_age(runs, 4, 1, 9, claims)
    assert age.staleness_T.tolist() == [0, 0, 1, 1]
    assert age.dead_lineage_T.tolist() == [True, True, False, False]


def test_a_step_is_abandoned_by_any_later_claim_that_went_back_before_it() -> None:
    claims = [Version(lineage=lineage, step=step) for lineage, step in ((1, 0), (2, 8), (3, 4), (4, 9))]
    abandoned = {(1, 5), (1, 9), (2, 5)}
    for lineage, step in [*abandoned, (1, 4), (2, 4), (3, 9), (4, 12)]:
        assert is_abandoned(Version(lineage=lineage, step=step), claims) == ((lineage, step) in abandoned)


@pytest.mark.parametrize("version", [(1, 11), (2, 3)])
def test_a_token_newer_than_its_consumer_is_an_error(version: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match="newer than the consuming step"):
        segment_age([run(*version, 0, 2)], 4, 1, 10)


def test_a_run_outside_the_segment_is_an_error() -> None:
    with pytest.raises(TrainingError, match="outside a segment"):
        segment_age([run(0, 0, 2, 5)], 4, 0, 0)


def test_rules() -> None:
    ages = np.array([-1, 0, 4, 5, 9], dtype=np.int32)
    assert stale(ages, 4, "mask").tolist() == [False, False, False, True, True]
    assert not stale(ages, 4, "keep").any()
    assert not stale(ages, None, "mask").any()
    assert not stale(ages, 9, "discard").any()
    with pytest.raises(TrainingError, match="2 tokens are older than 4"):
        stale(ages, 4, "discard")
    with pytest.raises(ConfigError, match="known are mask, discard, keep"):
        stale(ages, 4, "drop")


@given(st.integers(1, 32), st.integers(0, 50), st.integers(0, 8))
def test_admission_lets_generation_run_exactly_eta_updates_ahead(groups: int, step: int, eta: int) -> None:
    admitted = [slot for slot in range(groups * (step + eta + 3)) if admits(slot, groups, step, eta)]
    assert admitted == list(range(groups * (step + eta + 1)))
