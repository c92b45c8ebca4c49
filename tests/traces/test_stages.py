"""Where the open episodes of a run stand: the same whatever the interleaving of the streams."""

import itertools

from asearch.traces.stages import WINDOW_S, StageTable
from schemas.events import EpisodeRequested, EpisodeTaken, Event, GroupVerdict, StepTrained
from tests.runtime.facts import call, dropped, requested

S = 1_000_000_000


def at(event: Event, seconds: float) -> Event:
    return type(event)(**{**{name: getattr(event, name) for name in event.__struct_fields__}, "at_ns": int(seconds * S)})


def told() -> dict[str, list[Event]]:
    ask = at(requested("e", 0), 1)
    assert isinstance(ask, EpisodeRequested)
    taken = EpisodeTaken(id="take", at_ns=2 * S, episode="e", driver="driver-0", attempt=0, request=ask)
    search = at(call("e", 3), 5)
    return {"plan": [ask], "trace": [taken, search]}


def test_an_episode_moves_through_its_stages_in_any_interleaving() -> None:
    streams = told()
    for order in set(itertools.permutations(["plan", "trace", "trace"])):
        table, place = StageTable(), dict.fromkeys(streams, 0)
        for stream in order:
            table.fold(stream, place[stream] + 1, streams[stream][place[stream]])
            place[stream] += 1
        assert table.counts["tool"] == 1, order
        assert +table.counts == {"tool": 1}
        ((row, standing),) = table.slowest(5)
        assert (row.requested_ns, row.driver) == (1 * S, "driver-0")
        assert (standing.since_ns, standing.turn, standing.tool) == (5 * S, 3, "search")
        assert table.oldest_ns("tool") == 5 * S
        assert table.rows.folded == {"plan": 1, "outcomes": 0, "policy": 0, "trace": 2}


def test_an_outcome_ends_it_and_throughput_is_of_the_window() -> None:
    table = StageTable()
    for stream, events in told().items():
        for number, event in enumerate(events, 1):
            table.fold(stream, number, event)
    assert [row.episode for row in table.take_moved()] == ["e"]
    outcome = at(dropped("e"), 8)
    for _ in range(2):
        table.fold("outcomes", 1, outcome)
    assert +table.counts == {"dropped": 1}
    assert table.open == {}
    assert [row.stage for row in table.take_moved()] == ["dropped"]
    assert table.per_s("dropped", 10 * S) == table.per_s("tool", 10 * S) == 1 / WINDOW_S
    assert table.per_s("dropped", int((9 + WINDOW_S) * S)) == 0.0
    assert table.oldest_ns("tool") is None


def test_a_verdict_marks_the_rows_of_its_group() -> None:
    table = StageTable()
    table.fold("plan", 1, requested("e", 0))
    table.take_moved()
    step = StepTrained(
        id="s", model="policy", lineage=1, step=0, verdicts=[GroupVerdict(group="g", episodes=1)], staleness={}, empty=False,
        n_tokens_trained=0, n_tokens_masked_stale=0, n_tokens_discarded=0, metrics={},
    )  # fmt: skip
    table.fold("policy", 1, step)
    assert [row.episode for row in table.take_moved()] == ["e"]
