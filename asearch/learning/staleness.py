"""How old tokens are when an update consumes them, what is done with the old ones, and how far generation may run ahead."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from asearch.errors import ConfigError, TrainingError
from schemas.records import Version, VersionRun

Rule = Literal["mask", "discard", "keep"]
RULES: tuple[str, ...] = get_args(Rule)


class SegmentAge(NamedTuple):
    """Ages of the T tokens of one segment at a policy step."""

    staleness_T: npt.NDArray[np.int32]
    """Step of the consuming update minus step of the token's version; -1 where no version is recorded (loss mask 0)."""
    dead_lineage_T: npt.NDArray[np.bool_]
    """Tokens of abandoned steps: sampled from weights that a later claim went back before."""


def admits(slot: int, groups_per_step: int, step: int, eta: int) -> bool:
    """Whether the group of number `slot` (from 0) may start at policy step `step`: floor(slot / B) <= step + eta.

    Bounds the expected staleness by `eta` updates (AReaL, arXiv 2505.24298, Eq. 3); `eta` = 0 is synchronous.
    """
    return slot // groups_per_step <= step + eta


def is_abandoned(version: Version, claims: Sequence[Version]) -> bool:
    """Whether a later claim went on from a step before this version's: its weights are no ancestor of what is trained."""
    return any(claim.lineage > version.lineage and claim.step < version.step for claim in claims)


def segment_age(
    versions: Sequence[VersionRun], n_tokens: int, lineage: int, step: int, claims: Sequence[Version] = ()
) -> SegmentAge:
    """Ages of a segment of `n_tokens` tokens that the update from `step` to `step + 1` of `lineage` consumes.

    `claims` are the model's lineages so far, each with the step from which it went on.
    A token of an older lineage counts from its own step, and as 0 if the restarted trainer has not come that far again.
    Raises TrainingError for a run outside the segment and for a token newer than the update that consumes it.
    """
    staleness_T = np.full(n_tokens, -1, dtype=np.int32)
    dead_T = np.zeros(n_tokens, dtype=np.bool_)
    for run in versions:
        if not 0 <= run.start <= run.end <= n_tokens:
            raise TrainingError(f"version run [{run.start}, {run.end}) lies outside a segment of {n_tokens} tokens")
        age = step - run.version.step
        if run.version.lineage > lineage or (run.version.lineage == lineage and age < 0):
            raise TrainingError(
                f"tokens of version {run.version} are newer than the consuming step {lineage}.{step}: "
                "the batch was composed against another trainer's journal"
            )
        dead_T[run.start : run.end] = is_abandoned(run.version, claims)
        staleness_T[run.start : run.end] = max(age, 0)
    return SegmentAge(staleness_T, dead_T)


def stale(staleness_T: npt.NDArray[np.int32], max_staleness: int | None, rule: str) -> npt.NDArray[np.bool_]:
    """Which of T tokens the rule takes out of the loss; all False under `keep` and without a bound.

    Under `discard` the groups with stale tokens were discarded before the batch, so one that is left is an error.
    Raises ConfigError for an unknown rule, TrainingError under `discard`.
    """
    if rule not in RULES:
        raise ConfigError(f"unknown staleness rule {rule!r}; known are {', '.join(RULES)}")
    if max_staleness is None or rule == "keep":
        return np.zeros_like(staleness_T, dtype=np.bool_)
    too_old_T = staleness_T > max_staleness
    if rule == "discard" and too_old_T.any():
        raise TrainingError(
            f"{int(too_old_T.sum())} tokens are older than {max_staleness} steps in a batch under the rule `discard`: "
            "their groups should have been discarded before the batch was composed"
        )
    return too_old_T
