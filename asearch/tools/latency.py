"""Artificial latency of tool calls, for measurements: a pure function of (seed, task, member, call)."""

import hashlib
import math
from statistics import NormalDist
from typing import Literal

import msgspec

from asearch.errors import ConfigError

_NORMAL = NormalDist()


class LatencySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution of seconds a call.

    `constant`: always `scale_s`. `lognormal`: median `scale_s`, `shape` is the standard deviation of the logarithm. `pareto`:
    minimum `scale_s`, `shape` is the tail index (smaller is heavier).
    """

    distribution: Literal["none", "constant", "lognormal", "pareto"] = "none"
    scale_s: float = 0.0
    shape: float = 1.0
    cap_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.scale_s, self.shape, self.cap_s)
        if not all(map(math.isfinite, numbers)) or self.scale_s < 0 or self.shape <= 0 or self.cap_s < 0:
            raise ConfigError("A latency needs finite scale_s >= 0, shape > 0 and cap_s >= 0. Change the `latency` table.")


def latency_s(spec: LatencySpec, task: str, member: int, call: int) -> float:
    """Seconds that call number `call` of member `member` of a task's group takes; never more than `cap_s`."""
    if spec.distribution == "none":
        return 0.0
    return min(spec.cap_s, _sample_s(spec, _uniform(spec.seed, task, member, call)))


def _sample_s(spec: LatencySpec, u: float) -> float:
    if spec.distribution == "lognormal":
        return spec.scale_s * math.exp(min(spec.shape * _NORMAL.inv_cdf(u), 700.0))
    if spec.distribution == "pareto":
        return spec.scale_s * math.exp(min(-math.log1p(-u) / spec.shape, 700.0))
    return spec.scale_s


def _uniform(seed: int, task: str, member: int, call: int) -> float:
    """A number in the open interval (0, 1) that looks random and depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}\x1f{task}\x1f{member}\x1f{call}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) / (1 << 53)
