"""Tokens that arrive for an open call: checks, and the call with them added."""

import msgspec
import numpy as np

from asearch.agents.episode import FactError, GeneratedTokens, OpenCall, TokenGapError
from asearch.agents.packed import n_tokens, unpack_logprobs
from schemas.records import VersionRun


def with_tokens(call: OpenCall, fact: GeneratedTokens) -> OpenCall:
    """The call with the fact's tokens at its end.

    Raises TokenGapError where they do not begin at the end of the tokens held, FactError where columns differ in length,
    versions do not cover the tokens, a log-probability is not finite, or more tokens came than were asked for.
    """
    held, new = n_tokens(call.ids), n_tokens(fact.ids)
    if fact.offset != held:
        kind = "gap" if fact.offset > held else "overlap"
        raise TokenGapError(f"{call.id}: tokens begin at {fact.offset}, but {held} are held ({kind}).")
    if len(fact.logprobs) != len(fact.ids) or len(fact.ids) % 4:
        raise FactError(f"{call.id}: {len(fact.ids)} bytes of ids beside {len(fact.logprobs)} bytes of log-probabilities.")
    if held + new > call.max_new_tokens:
        raise FactError(f"{call.id}: {held + new} tokens came, {call.max_new_tokens} were asked for.")
    if not covered(fact.versions, new):
        raise FactError(f"{call.id}: the version runs do not cover the {new} tokens at offset {held} exactly.")
    if not np.isfinite(unpack_logprobs(fact.logprobs)).all():
        raise FactError(f"{call.id}: a log-probability at offset {held} is not finite.")
    return msgspec.structs.replace(
        call,
        ids=call.ids + fact.ids,
        logprobs=call.logprobs + fact.logprobs,
        versions=joined(call.versions, fact.versions, held),
    )


def covered(versions: tuple[VersionRun, ...], size: int) -> bool:
    """Whether the runs cover [0, size) in order, without gap or overlap."""
    position = 0
    for run in versions:
        if run.start != position or run.end <= run.start:
            return False
        position = run.end
    return position == size


def joined(runs: tuple[VersionRun, ...], more: tuple[VersionRun, ...], shift: int) -> tuple[VersionRun, ...]:
    """`runs` and then `more`, moved by `shift`; neighbours of one version become one run."""
    merged = list(runs)
    for run in more:
        moved = VersionRun(version=run.version, start=run.start + shift, end=run.end + shift)
        if merged and merged[-1].version == run.version and merged[-1].end == moved.start:
            moved = VersionRun(version=run.version, start=merged.pop().start, end=moved.end)
        merged.append(moved)
    return tuple(merged)
