"""What a transcript says of an episode."""

from types import SimpleNamespace
from typing import Any

from asearch.agents.packed import pack_ids
from asearch.agents.transcript import transcript
from schemas.records import Version, VersionRun


def test_the_oldest_version_is_the_one_of_the_lowest_step() -> None:
    """A trainer that was restarted goes on from an earlier step under a higher lineage: its tokens are the stale ones."""
    versions = [Version(lineage=1, step=1), Version(lineage=2, step=0)]
    pieces = [
        SimpleNamespace(own=True, ids=pack_ids([1]), versions=(VersionRun(version=each, start=0, end=1),)) for each in versions
    ]
    state: Any = SimpleNamespace(finished=None, pieces=pieces, tool_log=[], generated=[], n_turns=1)
    assert transcript(state).oldest == Version(lineage=2, step=0)
