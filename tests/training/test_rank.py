"""The rank as a process, over a real socket pair; one process for all tests of the module."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import load_file, save_file

from asearch.learning.metrics import STEP_METRICS
from asearch.learning.presets import PRESETS
from asearch.models.weights import load_weights
from asearch.training.checkpoints import entry_of
from schemas.local import (
    AwaitCheckpoint,
    CheckpointCopied,
    CheckpointProgress,
    CheckpointRestored,
    ExportWeights,
    LoadModel,
    ModelLoaded,
    RankFailed,
    RestoreCheckpoint,
    SaveCheckpoint,
    StepDone,
    TrainEpisode,
    TrainGroup,
    TrainStep,
    WeightsExported,
)
from schemas.records import TrainedEpisode, Version, VersionRun
from tests.training import bandit
from tests.training.channel import RankProcess
from tests.training.material import model_config, random_groups, segment, write_model

SETTINGS = {"lr": 3e-3, "token_budget": 128, "advantage": "grpo_mean"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "hf", model_config())


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[RankProcess]:
    process = RankProcess(tmp_path_factory.mktemp("rank") / "rank.log")
    try:
        early = process.ask(TrainStep(step=0, lineage=0, groups=[]))
        assert isinstance(early, RankFailed)
        assert "before LoadModel" in early.message
        yield process
        assert process.stop() == 0
    finally:
        process.kill()


def load(rank: RankProcess, folder: Path, **settings: Any) -> None:
    command = LoadModel(model_dir=str(folder), settings=json.dumps(SETTINGS | settings).encode(), seed=1)
    reply = rank.ask(command)
    assert isinstance(reply, ModelLoaded), reply
    assert reply.n_parameters == sum(t.numel() for t in load_weights(folder).values())


def train(rank: RankProcess, number: int, groups: list[TrainGroup], **fields: Any) -> StepDone:
    reply = rank.ask(TrainStep(step=number, groups=groups, **({"lineage": 0, "max_staleness": 4} | fields)))
    assert isinstance(reply, StepDone), reply
    return reply


def export(rank: RankProcess, path: Path) -> dict[str, str]:
    reply = rank.ask(ExportWeights(path=str(path), version=Version(lineage=0, step=1)))
    assert isinstance(reply, WeightsExported), reply
    assert reply.manifest.path == str(path)
    return {name: digest for shard in reply.manifest.shards for name, digest in shard.checksums.items()}


def test_ready_says_what_runs(rank: RankProcess) -> None:
    assert rank.ready.megatron_version.startswith("0.16")
    assert rank.ready.device in {"cpu", "cuda"}


def test_trains_exports_saves_and_resumes_bitwise(rank: RankProcess, folder: Path, tmp_path: Path) -> None:
    batches = [random_groups(3, 4, (5, 30), 67, seed=n) for n in range(4)]
    load(rank, folder)
    for number, batch in enumerate(batches):
        if number == 2:
            (tmp_path / "checkpoint").mkdir()
            assert isinstance(rank.ask(SaveCheckpoint(path=str(tmp_path / "checkpoint"))), CheckpointCopied)
        done = train(rank, number, batch)
        assert not done.skipped
        assert done.staleness == {number: done.n_tokens_trained}
        assert done.metrics["behaviour_weight"] > 0
    saved = rank.ask(AwaitCheckpoint(timeout_s=60.0))
    assert isinstance(saved, CheckpointProgress)
    assert saved.files == {path.name: (path.stat().st_size, entry_of(path).hash) for path in (tmp_path / "checkpoint").iterdir()}
    straight = export(rank, tmp_path / "straight")
    load(rank, folder)
    assert isinstance(rank.ask(RestoreCheckpoint(path=str(tmp_path / "checkpoint"))), CheckpointRestored)
    for number in (2, 3):
        train(rank, number, batches[number])
    assert export(rank, tmp_path / "resumed") == straight
    assert export(rank, tmp_path / "resumed") == straight


def test_stale_tokens_are_masked_and_the_rest_of_the_episode_is_trained(rank: RankProcess, folder: Path) -> None:
    load(rank, folder)
    runs = [VersionRun(version=Version(lineage=0, step=s), start=i, end=i + 1) for i, s in ((1, 3), (2, 6), (4, 10))]
    part = segment("s", [1, 2, 3, 4, 5], [0, 1, 1, 0, 1], [0, -1, -1, 0, -1], versions=runs)
    group = TrainGroup(group="g", episodes=[TrainEpisode(episode=f"e{r}", reward=r, segments=[part]) for r in (0.0, 1.0)])
    done = train(rank, 10, [group])
    assert (done.n_tokens_trained, done.n_tokens_masked_stale) == (4, 2)
    assert done.staleness == {0: 2, 4: 2}
    assert sum(done.metrics[f"masked_stale_decile_{i}"] for i in range(10)) == 2
    kept = train(rank, 10, [group], rule="keep")
    assert kept.staleness == {0: 2, 4: 2, 7: 2}
    # The trainer of lineage 0 went as far as step 10, its successor took over from step 6: of the two trained runs, one is dead.
    claims = (Version(lineage=0, step=0), Version(lineage=1, step=6))
    older = train(rank, 10, [group], lineage=1, claims=claims)
    assert older.metrics["dead_lineage_tokens"] == 2


def bad_batches() -> dict[str, tuple[TrainStep, str]]:
    good = random_groups(1, 2, (5, 6), 67)
    episode = good[0].episodes[0]

    def step(part: Any, reward: float = 0.0, number: int = 0, **fields: Any) -> TrainStep:
        changed = msgspec.structs.replace(episode, reward=reward, segments=[part])
        group = msgspec.structs.replace(good[0], episodes=[changed, good[0].episodes[1]])
        return TrainStep(step=number, lineage=0, groups=[group], **({"max_staleness": 4} | fields))

    part = episode.segments[0]
    newer, ids, mask = Version(lineage=0, step=1), [1, 2, 3], [0, 1, 1]
    return {
        "reward": (step(part, math.nan), "has the reward nan"),
        "newer": (step(segment("s", ids, mask, version=newer)), "newer than the consuming step"),
        "discard": (step(part, number=9, rule="discard"), "should have been discarded"),
        "rule": (step(part, rule="drop"), "unknown staleness rule"),
        "logprob": (step(segment("s", ids, mask, [0.0, math.inf, 0.0])), "not finite"),
        "versions": (step(segment("s", ids, mask, versions=[])), "do not cover exactly"),
        "first": (step(segment("s", ids, [1, 1, 1])), "nothing precedes it"),
        "vocabulary": (step(segment("s", [1, 67, 3], mask)), "outside the model's vocabulary"),
        "lengths": (step(segment("s", ids, [0, 1, 1, 1])), "mask has shape"),
    }


@pytest.mark.parametrize("name", list(bad_batches()))
def test_a_bad_batch_is_refused_and_changes_nothing(rank: RankProcess, folder: Path, name: str, tmp_path: Path) -> None:
    load(rank, folder)
    before = export(rank, tmp_path / "before")
    command, message = bad_batches()[name]
    reply = rank.ask(command)
    assert isinstance(reply, RankFailed), reply
    assert message in reply.message
    assert not reply.fatal
    assert export(rank, tmp_path / "after") == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 1.0}, "unknown field `lrr`"),
        ({"lr": "fast"}, r"$.lr"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"schedule": "cosine"}, "needs decay_steps"),
        ({"objective": "decoupled_pppo"}, "did you mean 'decoupled_ppo'"),
        ({"objective": "dapo", "correction": "sequence"}, "set old_policy"),
        ({"tensor_parallel": 0}, "must be at least 1"),
        ({"tensor_parallel": 2}, "are 2 ranks; there are 1"),
    ],
)
def test_bad_settings_are_refused_by_name(rank: RankProcess, folder: Path, settings: dict[str, Any], message: str) -> None:
    reply = rank.ask(LoadModel(model_dir=str(folder), settings=json.dumps(SETTINGS | settings).encode(), seed=0))
    assert isinstance(reply, RankFailed)
    assert message in reply.message
    assert not reply.fatal


def test_bad_folders_and_frames_are_refused(rank: RankProcess, folder: Path, tmp_path: Path) -> None:
    missing = rank.ask(LoadModel(model_dir=str(tmp_path / "none"), settings=b"{}", seed=0))
    assert isinstance(missing, RankFailed)
    assert "config.json" in missing.message
    rank.send(b"\xc1 not msgpack")
    garbage = rank.receive()
    assert isinstance(garbage, RankFailed)
    assert not garbage.fatal
    load(rank, folder)


def test_supervised_batches_need_no_versions_and_no_rewards(rank: RankProcess, folder: Path) -> None:
    load(rank, folder, objective="sft")
    part = segment("s", [1, 2, 3], [0, 1, 1], versions=[])
    group = TrainGroup(group="g", episodes=[TrainEpisode(episode="e", reward=0.0, segments=[part])])
    done = [train(rank, n, [group], max_staleness=None) for n in range(3)]
    assert done[0].metrics["loss"] > done[-1].metrics["loss"] > 0


def columns(episode: TrainedEpisode) -> dict[str, tuple[list[int], npt.NDArray[np.float32]]]:
    """Positions and log-probabilities by segment."""
    found = {each.segment: each.columns for each in episode.segments}
    return {
        name: (np.frombuffer(c["positions"].data, "<u4").tolist(), np.frombuffer(c["logprobs"].data, "<f4"))
        for name, c in found.items()
    }


def recorded_batch() -> list[TrainGroup]:
    """Random groups; the first episode of the batch has a second segment, of which half is too old to be trained."""
    groups = random_groups(4, 3, (5, 30), 67, seed=7, version=Version(lineage=0, step=9))
    first = groups[0].episodes[0]
    runs = [VersionRun(version=Version(lineage=0, step=s), start=i, end=i + 1) for i, s in ((1, 3), (2, 9), (4, 9))]
    more = segment("more", [1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 0], [0, -1, -1, 0, -1, 0], versions=runs)
    first = msgspec.structs.replace(first, segments=[*first.segments, more])
    rest = groups[0].episodes[1:]
    return [msgspec.structs.replace(groups[0], episodes=[first, *rest]), *groups[1:]]


def test_what_an_update_did_is_told_token_by_token_and_changes_nothing(rank: RankProcess, folder: Path, tmp_path: Path) -> None:
    groups = recorded_batch()
    told: dict[int, list[TrainedEpisode]] = {}
    for minibatches in (1, 3):
        weights: list[dict[str, str]] = []
        for limit in (0, 10_000, 20):
            load(rank, folder, minibatches=minibatches, advantage="grpo")
            done = train(rank, 9, groups, max_recorded_tokens=limit)
            if limit == 10_000:
                told[minibatches] = done.episodes
                n_told = sum(len(each[0]) for episode in done.episodes for each in columns(episode).values())
                assert n_told == done.n_tokens_trained
            weights.append(export(rank, tmp_path / f"{minibatches}-{limit}"))
        assert weights[0] == weights[1] == weights[2]
    names = [episode.episode for group in groups for episode in group.episodes]
    for episodes in told.values():
        assert [episode.episode for episode in episodes] == names
        for group in range(4):
            assert sum(episode.advantage for episode in episodes[3 * group : 3 * group + 3]) == pytest.approx(0.0, abs=1e-6)
    # The loss's own first pass, and the pass before several optimizer steps, are of the same weights.
    for one, other in zip(told[1], told[3], strict=True):
        assert columns(one).keys() == columns(other).keys()
        for name, (positions, logprobs) in columns(one).items():
            assert positions == columns(other)[name][0]
            np.testing.assert_allclose(logprobs, columns(other)[name][1], atol=1e-5)
            assert (logprobs < 0).all()
    for episode, trained in zip((e for group in groups for e in group.episodes), told[1], strict=True):
        masks = {each.id: np.flatnonzero(np.frombuffer(each.columns["mask"].data, "u1")).tolist() for each in episode.segments}
        assert columns(trained).keys() == masks.keys()
        expected = masks | ({"more": [2, 4]} if "more" in masks else {})
        assert {name: positions for name, (positions, _) in columns(trained).items()} == expected


def test_whole_episodes_are_told_until_the_bound_is_reached(rank: RankProcess, folder: Path) -> None:
    load(rank, folder)
    groups = recorded_batch()
    full = train(rank, 9, groups, max_recorded_tokens=10_000).episodes
    sizes = [sum(len(positions) for positions, _ in columns(episode).values()) for episode in full]
    for n_whole in (0, 1, 5):
        limit = sum(sizes[: n_whole + 1]) - 1
        load(rank, folder)
        told = train(rank, 9, groups, max_recorded_tokens=limit).episodes
        assert [bool(episode.segments) for episode in told] == [n < n_whole for n in range(len(full))]
        assert [episode.advantage for episode in told] == [episode.advantage for episode in full]
    same = [msgspec.structs.replace(group, episodes=[group.episodes[0]]) for group in groups]
    skipped = train(rank, 10, same, max_recorded_tokens=10_000)
    assert skipped.skipped
    assert [(each.advantage, each.segments) for each in skipped.episodes] == [(0.0, [])] * 4


@pytest.mark.parametrize("objective", [name for name in PRESETS if name != "sft"])
def test_every_objective_learns_which_actions_are_rewarded(rank: RankProcess, folder: Path, objective: str) -> None:
    load(rank, folder, objective=objective, advantage=None, clip_low=0.2, clip_high=0.3, lr=1e-3)
    behaviour: dict[str, npt.NDArray[np.float32]] = {}
    preferences: list[float] = []
    for number in range(8):
        done = train(rank, number, bandit.groups_of(behaviour), max_staleness=99, max_recorded_tokens=10_000)
        behaviour = bandit.told(done.episodes)
        preferences.append(bandit.preference(behaviour))
        assert all(math.isfinite(value) for value in done.metrics.values())
        assert done.metrics.keys() <= STEP_METRICS.keys()
        assert {
            "entropy",
            "kl_k3",
            "logprob_difference",
            "logprob_difference_max",
            "masked_stale_fraction",
        } <= done.metrics.keys()
    assert preferences[-1] > preferences[0] + 0.1
    # The first batch was sampled evenly by nobody, the others as the trainer says.
    assert done.metrics["logprob_difference_max"] >= done.metrics["logprob_difference"] > 0


@pytest.mark.parametrize("other", [{}, {"distributed_optimizer": True}, {"precision": "bf16"}], ids=str)
def test_a_critic_is_trained_kept_and_restored_with_the_policy(
    rank: RankProcess, folder: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    settings = {"objective": "ppo", "advantage": None, "gamma": 0.9, "gae_lambda": 0.8, "minibatches": 2} | other
    batches = [random_groups(3, 4, (5, 20), 67, seed=n) for n in range(4)]
    load(rank, folder, **settings)
    told: list[dict[str, float]] = []
    for number, batch in enumerate(batches):
        if number == 2:
            (tmp_path / "checkpoint").mkdir()
            assert isinstance(rank.ask(SaveCheckpoint(path=str(tmp_path / "checkpoint"))), CheckpointCopied)
            saved = rank.ask(AwaitCheckpoint(timeout_s=60.0))
            assert isinstance(saved, CheckpointProgress)
            assert saved.files is not None
            assert "rank0.critic.safetensors" in saved.files
        told.append(train(rank, number, batch).metrics)
    assert told[0]["value"] == 0.0
    assert told[0]["return"] > 0
    straight = export(rank, tmp_path / "straight")
    load(rank, folder, **settings)
    assert isinstance(rank.ask(RestoreCheckpoint(path=str(tmp_path / "checkpoint"))), CheckpointRestored)
    again = [train(rank, number, batches[number]).metrics | {"tokens_per_s": 0} for number in (2, 3)]
    assert again == [metrics | {"tokens_per_s": 0} for metrics in told[2:]]
    assert export(rank, tmp_path / "resumed") == straight
    critic = tmp_path / "checkpoint" / "rank0.critic.safetensors"
    if not other:
        # As trainers wrote it that had the critic on one rank alone.
        save_file(load_file(critic), critic)
        assert isinstance(rank.ask(RestoreCheckpoint(path=str(tmp_path / "checkpoint"))), CheckpointRestored)
        assert train(rank, 2, batches[2]).metrics | {"tokens_per_s": 0} == again[0]
    # A checkpoint of a run without a critic has nothing to restore one from.
    critic.unlink()
    refused = rank.ask(RestoreCheckpoint(path=str(tmp_path / "checkpoint")))
    assert isinstance(refused, RankFailed)
    assert "critic" in refused.message


def test_the_critic_learns_what_to_expect(rank: RankProcess, folder: Path) -> None:
    load(rank, folder, objective="ppo", advantage=None, lr=1e-3, value_clip=0.0)
    errors = [train(rank, n, bandit.groups_of({}), max_staleness=99).metrics["value_error"] for n in range(12)]
    assert errors[0] == pytest.approx(0.5, abs=1e-6)
    assert errors[-1] < 0.3


def test_the_reference_is_the_policy_that_the_run_began_with(rank: RankProcess, folder: Path, tmp_path: Path) -> None:
    batches = [random_groups(3, 4, (5, 20), 67, seed=n) for n in range(3)]
    load(rank, folder, kl_coefficient=0.05, objective="grpo", advantage=None)
    told = [train(rank, number, batch).metrics for number, batch in enumerate(batches[:2])]
    assert told[0]["kl_reference"] == 0.0
    assert told[1]["kl_reference"] > 0
    (tmp_path / "checkpoint").mkdir()
    rank.ask(SaveCheckpoint(path=str(tmp_path / "checkpoint")))
    rank.ask(AwaitCheckpoint(timeout_s=60.0))
    last = train(rank, 2, batches[2]).metrics
    load(rank, folder, kl_coefficient=0.05, objective="grpo", advantage=None)
    rank.ask(RestoreCheckpoint(path=str(tmp_path / "checkpoint")))
    assert train(rank, 2, batches[2]).metrics | {"tokens_per_s": 0} == last | {"tokens_per_s": 0}
    drift: dict[float, float] = {}
    for coefficient in (1e-6, 10.0):
        load(rank, folder, kl_coefficient=coefficient, objective="grpo", advantage=None)
        for number in range(6):
            done = train(rank, number, batches[0], max_staleness=99)
        drift[coefficient] = done.metrics["kl_reference"]
    assert drift[10.0] < 0.5 * drift[1e-6]


def test_the_rank_leaves_when_the_channel_closes(tmp_path: Path) -> None:
    process = RankProcess(tmp_path / "log")
    try:
        process.sock.close()
        assert process.process.wait(timeout=20) == 0
    finally:
        process.kill()
