"""Artificial latency of tool calls, for measurements: a pure function of (seed, task, member, call)."""

import hashlib
import math
from statistics import NormalDist
from typing import Literal

import msgspec

from asearch.errors import ConfigError

_NORMAL = NormalDist()
_MAX_EXPONENT = 700.0


class LatencySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution of seconds a call, with mean `mean_s` before the cap.

    `lognormal`: `shape` is the standard deviation of the logarithm. `pareto`: `shape` > 1 is the tail index; smaller is heavier.
    """

    distribution: Literal["none", "constant", "lognormal", "pareto"] = "none"
    mean_s: float = 0.0
    shape: float = 1.5
    cap_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in ("none", "constant", "lognormal", "pareto"):
            raise ConfigError(f"Unknown latency {self.distribution!r}. Known: none, constant, lognormal, pareto.")
        numbers = (self.mean_s, self.shape, self.cap_s)
        if not all(map(math.isfinite, numbers)) or self.mean_s < 0 or self.shape <= 0 or self.cap_s < 0:
            raise ConfigError("A latency needs a finite mean and cap of at least 0 and a positive shape.")
        if self.distribution == "pareto" and self.shape <= 1:
            raise ConfigError(f"A Pareto latency with shape {self.shape} has no mean. Choose a shape above 1.")


def latency_s(spec: LatencySpec, task: str, member: int, call: int) -> float:
    """Seconds that call number `call` of member `member` of a task's group takes; never more than `cap_s`."""
    if spec.distribution == "none" or spec.mean_s == 0:
        return 0.0
    return min(spec.cap_s, _sample_s(spec, _uniform(spec.seed, task, member, call)))


def _sample_s(spec: LatencySpec, u: float) -> float:
    if spec.distribution == "lognormal":
        exponent = spec.shape * _NORMAL.inv_cdf(u) - spec.shape**2 / 2
        return spec.mean_s * math.exp(min(exponent, _MAX_EXPONENT))
    if spec.distribution == "pareto":
        minimum_s = spec.mean_s * (spec.shape - 1) / spec.shape
        return minimum_s * math.exp(min(-math.log1p(-u) / spec.shape, _MAX_EXPONENT))
    return spec.mean_s


def _uniform(seed: int, task: str, member: int, call: int) -> float:
    """A number in the open interval (0, 1) that looks random and depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}\x1f{task}\x1f{member}\x1f{call}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) / (1 << 53)
