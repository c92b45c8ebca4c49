"""Artificial latency: deterministic, bounded, with the stated mean."""

from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asearch.errors import ConfigError
from asearch.tools.latency import LatencySpec, latency_s

HEAVY = LatencySpec(distribution="pareto", mean_s=1.0, shape=3.0, cap_s=1e9)


def test_none_and_constant():
    assert latency_s(LatencySpec(), "t", 0, 0) == 0
    assert latency_s(LatencySpec(distribution="constant", mean_s=2.0, cap_s=1.5), "t", 0, 0) == 1.5


@pytest.mark.parametrize(
    "spec", [HEAVY, LatencySpec(distribution="lognormal", mean_s=1.0, shape=0.8, cap_s=1e9)], ids=lambda s: s.distribution
)
def test_the_mean_is_the_one_that_is_asked_for(spec: LatencySpec):
    seconds = [latency_s(spec, "task", i, j) for i in range(100) for j in range(200)]
    assert fmean(seconds) == pytest.approx(1.0, rel=0.05)
    assert len(set(seconds)) == len(seconds)


@given(st.integers(0, 9), st.text(max_size=5), st.integers(0, 9), st.integers(0, 99), st.floats(1.01, 5), st.floats(0, 9))
def test_same_call_same_latency_within_the_cap(seed: int, task: str, member: int, call: int, shape: float, cap_s: float):
    for distribution in ("lognormal", "pareto"):
        spec = LatencySpec(distribution=distribution, mean_s=1.0, shape=shape, cap_s=cap_s, seed=seed)
        seconds = latency_s(spec, task, member, call)
        assert 0 <= seconds <= cap_s
        assert seconds == latency_s(spec, task, member, call)


def test_every_part_of_the_key_matters():
    keys = [(0, "t", 0, 0), (1, "t", 0, 0), (0, "u", 0, 0), (0, "t", 1, 0), (0, "t", 0, 1)]
    assert len({latency_s(replace(HEAVY, seed=key[0]), *key[1:]) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "wrong",
    [
        {"distribution": "normal"},
        {"mean_s": -1},
        {"mean_s": float("nan")},
        {"distribution": "pareto", "shape": 1.0},
        {"shape": 0},
    ],
)
def test_wrong_specs_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigError):
        LatencySpec(**wrong)
