"""The tree of every episode is whole, whatever process died: all actors in virtual time, killed at any await."""

from pathlib import Path

import msgspec
import pytest

from actors.runtime.tracing import Span, episode_context
from tests.sim.scenario import Scenario, scenario_of
from tests.sim.simulation import RUN
from tests.tracing.played import TracedSimulation, orphans, trees

SEEDS = (3, 10)
"""With 10 drivers go on with episodes that were given up."""


class Line(msgspec.Struct):
    episode: str


def played(folder: Path, scenario: Scenario) -> tuple[TracedSimulation, dict[int, dict[int, Span]]]:
    simulation = TracedSimulation(folder, scenario)
    simulation.run()
    return simulation, trees(simulation.sent)


def archived(simulation: TracedSimulation) -> list[str]:
    lines = (simulation.folder / "archive" / "episodes.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Line).episode for line in lines]


def names(tree: dict[int, Span]) -> set[str]:
    return {span.name.split(" ")[0] for span in tree.values()}


def test_every_episode_is_one_whole_tree(tmp_path: Path) -> None:
    simulation, found = played(tmp_path, Scenario())
    assert simulation.findings == []
    episodes = archived(simulation)
    assert len(episodes) > 20
    for episode in episodes:
        root = episode_context(RUN, episode)
        tree = found[root.trace_id]
        assert [span.context for span in tree.values() if span.parent is None] == [root]
        assert orphans(tree) == []
        assert {"invoke_agent", "request", "drive", "turn", "chat", "generate", "grade"} <= names(tree)
    with_tool = [tree for tree in found.values() if "execute_tool" in names(tree)]
    assert with_tool
    steps = [span for tree in found.values() for span in tree.values() if span.name.startswith("train step")]
    linked = {link.context for span in steps for link in span.links}
    assert linked and linked <= {episode_context(RUN, episode) for episode in episodes}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_span_is_left_without_its_parent_by_faults(seed: int, tmp_path: Path) -> None:
    simulation, found = played(tmp_path, scenario_of(seed, lost_tails=False))
    assert simulation.findings == []
    assert sum(simulation.troubles.counts.values()) > 0
    for episode in archived(simulation):
        root = episode_context(RUN, episode)
        tree = found[root.trace_id]
        assert [span.context for span in tree.values() if span.parent is None] == [root], episode
        assert orphans(tree) == [], episode
