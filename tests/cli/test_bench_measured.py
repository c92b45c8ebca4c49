"""The bounds of the asynchrony benchmark, from facts written by hand."""

from pathlib import Path

import msgspec
import pytest

from actors.bench.async_speedup import Load, settings_of_arm
from actors.bench.measured import Measured, measure
from asearch.errors import AsearchError
from asearch.tools.latency import latency_s
from schemas.archive import ArchivedEpisode
from schemas.events import EpisodeFinished, EpisodeGraded, GroupAdmitted, GroupVerdict, StepTrained, ToolRequested
from schemas.records import Reward, Task

LOAD = Load(steps=2, groups_per_step=1, group_size=2)
HELD_S = {"t-0-0": (1.0, 4.0), "t-1-0": (2.0, 3.0)}
"""Seconds for which a driver held the members of each group."""


def archived(group: str, member: int, held_s: float) -> ArchivedEpisode:
    episode = f"{group}-{member}"
    who = {"episode": episode, "group": group, "member": member, "members": 2, "slot": 0, "purpose": "train", "task": group}
    told = {"status": "answered", "answer": "x", "trajectory": None, "n_turns": 2, "n_tokens_generated": 7}
    called = ToolRequested(
        id=f"{episode}-call",
        episode=episode,
        call=f"{episode}:t0",
        turn=0,
        tool="search",
        argument="a",
        task=group,
        member=member,
        reply_to="here",
    )
    finished = EpisodeFinished(id=f"{episode}-end", **who, **told, generated=[], tool_log=[], elapsed_ns=int(held_s * 1e9))
    outcome = EpisodeGraded(id=f"{episode}-graded", **who, **told, reward=Reward(value=1.0), n_searches=1, n_reads=0)
    return ArchivedEpisode(episode=episode, sequence=1, outcome=outcome, facts=[called, called, finished])


def measured(folder: Path, eta: int, groups: dict[str, tuple[float, ...]] = HELD_S) -> Measured:
    path = folder / "episodes.jsonl"
    episodes = [archived(group, member, held_s) for group, held in groups.items() for member, held_s in enumerate(held)]
    path.write_bytes(b"".join(msgspec.json.encode(episode) + b"\n" for episode in episodes))
    admitted = [
        GroupAdmitted(
            id=group,
            at_ns=(10 + n) * 10**9,
            group=group,
            purpose="train",
            slot=n,
            task=Task(id=group, question="?"),
            members=2,
            seeds=[0, 0],
            progress=n,
        )
        for n, group in enumerate(HELD_S)
    ]
    trained = [
        StepTrained(
            id=f"step-{n}",
            at_ns=(15 + 5 * n) * 10**9,
            model="policy",
            lineage=1,
            step=n,
            verdicts=[GroupVerdict(group=group, episodes=2)],
            staleness={n: 7},
            elapsed_ns=10**9 // 2,
            n_tokens_trained=7,
            n_tokens_masked_stale=0,
            n_tokens_discarded=0,
            empty=False,
            metrics={},
        )
        for n, group in enumerate(HELD_S)
    ]
    return measure(settings_of_arm(LOAD, eta, 0, None), admitted, trained, path)


def test_wall_is_from_the_first_admission_to_the_last_step(tmp_path: Path) -> None:
    assert measured(tmp_path, 0).wall_s == 10.0


def test_bounds(tmp_path: Path) -> None:
    sync, ahead = measured(tmp_path, 0), measured(tmp_path, 4)
    assert sync.training_s == 1.0
    assert sync.sync_bound_s == (4.0 + 0.5) + (3.0 + 0.5)
    assert sync.generation_bound_s == 10.0 / 2  # two places
    assert ahead.generation_bound_s == 4.0  # ten places: the longest episode
    assert ahead.async_bound_s == 4.0
    assert ahead.max_staleness == 1


def test_injected_latency_is_computed_again_and_a_repeated_request_counts_once(tmp_path: Path) -> None:
    sync = measured(tmp_path, 0)
    expected = [latency_s(sync.settings.tools.latency, group, member, 0) for group in HELD_S for member in range(2)]
    assert [episode.injected_s for episode in sync.episodes] == expected
    assert all(0 < seconds <= LOAD.cap_s for seconds in expected)
    assert sync.injected_bound_s == pytest.approx(max(expected[:2]) + max(expected[2:]) + 1.0)


def test_an_episode_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AsearchError, match="step 1"):
        measured(tmp_path, 0, {"t-0-0": (1.0, 4.0), "t-1-0": (2.0,)})


def test_both_arms_have_the_same_latencies_and_tasks(tmp_path: Path) -> None:
    sync, ahead = (settings_of_arm(LOAD, eta, 3, tmp_path) for eta in (0, 4))
    assert sync.tools.latency == ahead.tools.latency
    assert msgspec.structs.replace(sync.run, eta=4) == ahead.run
    assert sync.run.max_refills == 0
