"""The schedule alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.schedule import DOUBLE_GAP_S, KINDS, PAUSE_S, STOPPED_S, schedule

COUNTS = {"driver": 2, "engine": 2, "server": 2}


@given(seed=st.integers(0, 10_000), n=st.integers(1, 200))
def test_kinds_come_equally_often(seed: int, n: int) -> None:
    faults = schedule(seed, n, 8.0, COUNTS)
    assert [fault.number for fault in faults] == list(range(n))
    by_kind = Counter(fault.kind for fault in faults)
    assert set(by_kind) <= set(KINDS)
    assert {by_kind[kind] for kind in KINDS} <= {n // len(KINDS), n // len(KINDS) + 1}
    if n >= 100:
        assert min(by_kind[kind] for kind in KINDS) >= 5


@given(seed=st.integers(0, 10_000), lease_s=st.floats(1.0, 60.0))
def test_every_fault_is_within_its_bounds(seed: int, lease_s: float) -> None:
    for fault in schedule(seed, 100, lease_s, COUNTS):
        assert 0 <= fault.instance < COUNTS.get(fault.target, 1)
        low_s, high_s = DOUBLE_GAP_S if fault.double else PAUSE_S
        assert low_s <= fault.pause_s <= high_s
        if fault.action != "stop":
            assert fault.stopped_s == 0.0
        elif fault.target == "driver":
            assert fault.stopped_s > lease_s, "it has to be presumed dead"
        else:
            assert STOPPED_S[fault.target][0] - 0.01 <= fault.stopped_s <= STOPPED_S[fault.target][1] + 0.01


def test_the_seed_alone_decides() -> None:
    assert schedule(7, 100, 8.0, COUNTS) == schedule(7, 100, 8.0, COUNTS)
    assert schedule(7, 100, 8.0, COUNTS) != schedule(8, 100, 8.0, COUNTS)


def test_both_of_two_are_hit_and_some_faults_come_upon_each_other() -> None:
    faults = [fault for seed in range(5) for fault in schedule(seed, 100, 8.0, COUNTS)]
    assert {fault.instance for fault in faults if fault.target == "driver"} == {0, 1}
    assert 0.05 < sum(fault.double for fault in faults) / len(faults) < 0.2
    assert not any(fault.double for fault in faults if fault.number == 0)


@pytest.mark.parametrize("kinds", [("kill_rank",), ("kill_driver", "stop_broker")])
def test_only_the_kinds_that_were_asked_for(kinds: tuple[str, ...]) -> None:
    assert {fault.kind for fault in schedule(1, 10, 8.0, COUNTS, kinds)} == set(kinds)
