"""What a policy step does to weights and metrics.

Megatron is in this process (see `in_process`), so pytest does not collect it by name.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from asearch.errors import TrainingError
from asearch.learning.normalisation import TokenWeights
from schemas.local import TrainEpisode, TrainGroup
from tests.training.in_process import LENGTHS, assert_equal, gradients, learner, sequences, step, weights_of
from tests.training.material import random_groups, segment

# What imports megatron comes after the shim that `in_process` installs.
# isort: split
from asearch.training.microbatch import micro_batches
from asearch.training.step import train_step


def test_detached_log_probabilities_are_the_recomputed_proximal_ones(folder: Path) -> None:
    built = learner(folder)
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    advantages = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.3]
    packed = micro_batches(chosen, advantages, TokenWeights([1.0] * len(chosen), 50), 64)
    built.accumulate(packed)
    plain = {name: g.clone() for name, g in gradients(built).items()}
    recomputed = [replace(b, proximal_N=p) for b, p in zip(packed, built.logprobs(packed), strict=True)]
    sums = built.accumulate(recomputed)
    assert_equal(plain, gradients(built))
    assert float(sums["clip_fraction"]) == 0.0


def test_minibatches_clip_against_the_weights_before_the_update(folder: Path) -> None:
    groups = random_groups(4, 4, (5, 30), 67)
    single, several = learner(folder), learner(folder, minibatches=4)
    whole, parts = train_step(single, step(0, groups)), train_step(several, step(0, groups))
    assert whole.metrics["policy_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert abs(parts.metrics["policy_ratio"] - 1.0) > 1e-4
    assert parts.n_tokens_trained == whole.n_tokens_trained


def test_sft_learns_a_toy_mapping(folder: Path) -> None:
    built = learner(folder, objective="sft", lr=1e-2)
    rng = np.random.default_rng(0)
    losses = []
    for number in range(60):
        episodes = []
        for i in range(32):
            x = int(rng.integers(0, 67))
            part = segment(f"{i}", [x, (5 * x + 17) % 67, (25 * x + 40) % 67], [0, 1, 1], versions=[])
            episodes.append(TrainEpisode(episode=f"{i}", reward=0.0, segments=[part]))
        done = train_step(built, step(number, [TrainGroup(group="g", episodes=episodes)], max_staleness=None))
        assert not done.skipped
        losses.append(done.metrics["loss"])
    assert losses[0] > 3.5
    assert losses[-1] < 0.2


@pytest.mark.parametrize("how", ["weights", "behaviour"])
def test_what_is_not_finite_changes_nothing(folder: Path, how: str) -> None:
    built = learner(folder, minibatches=2, behaviour_cap=0.0)
    groups = random_groups(2, 4, (5, 12), 67)
    train_step(built, step(0, groups))
    if how == "weights":
        built.weights()["decoder.layers.1.mlp.linear_fc2.weight"][0, 0] = math.inf
        command = step(1, groups)
    else:
        # The second minibatch overflows the behaviour weight, after the first has been taken.
        ids, mask = [1, 2, 3], [0, 1, 1]
        episodes = [
            TrainEpisode(episode=f"{r}", reward=r, segments=[segment("s", ids, mask, [0.0, -200.0, -200.0])]) for r in (0.0, 1.0)
        ]
        command = step(1, [*groups[:1], TrainGroup(group="bad", episodes=episodes)])
    before = weights_of(built)
    states = [{k: v.clone() for k, v in s.items()} for o in built.inner_optimizers() for s in o.state.values()]
    with pytest.raises(TrainingError, match="not finite"):
        train_step(built, command)
    assert_equal(weights_of(built), before)
    after = [s for o in built.inner_optimizers() for s in o.state.values()]
    for old, new in zip(states, after, strict=True):
        assert_equal(old, new)


def test_bf16_follows_fp32(folder: Path) -> None:
    groups = random_groups(3, 4, (5, 30), 67)
    full, half = learner(folder), learner(folder, precision="bf16")
    a, b = (train_step(built, step(0, groups)).metrics for built in (full, half))
    assert b["loss"] == pytest.approx(a["loss"], abs=0.02)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.1)


def with_rewards(group: TrainGroup, reward: float) -> TrainGroup:
    return msgspec.structs.replace(group, episodes=[msgspec.structs.replace(each, reward=reward) for each in group.episodes])


def test_a_batch_without_signal_is_skipped(folder: Path) -> None:
    built = learner(folder)
    before = weights_of(built)
    groups = [with_rewards(g, 0.5) for g in random_groups(2, 3, (5, 9), 67)]
    silent = segment("s", [1, 2], [0, 0])
    nothing = [TrainGroup(group="g", episodes=[TrainEpisode(episode=f"{r}", reward=r, segments=[silent]) for r in (0.0, 1.0)])]
    for batch in (groups, nothing, []):
        done = train_step(built, step(0, batch))
        assert done.skipped
        assert done.n_tokens_trained == 0
        assert json.dumps(done.metrics)
    assert_equal(weights_of(built), before)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_a_minibatch_without_signal_goes_with_another(folder: Path, order: tuple[int, ...]) -> None:
    """Groups 1 and 2 have equal rewards: no step is made for them alone, and their tokens are in the loss."""
    groups = random_groups(3, 3, (5, 9), 67)
    groups[1:] = [with_rewards(group, 0.5) for group in groups[1:]]
    chosen = [groups[number] for number in order]
    several = learner(folder, minibatches=3)
    whole = train_step(learner(folder), step(0, chosen, max_recorded_tokens=10_000))
    parts = train_step(several, step(0, chosen, max_recorded_tokens=10_000))
    assert [float(s["step"]) for o in several.inner_optimizers() for s in o.state.values()][:1] == [1.0]
    assert parts.n_tokens_trained == whole.n_tokens_trained == sum(parts.staleness.values())
    for found, expected in zip(parts.episodes, whole.episodes, strict=True):
        assert found.segments and len(found.segments) == len(expected.segments)
    assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-7)


def test_equal_rewards_teach_where_the_loss_is_more_than_advantages_of_groups(folder: Path) -> None:
    groups = [with_rewards(group, 0.5) for group in random_groups(2, 3, (5, 9), 67)]
    for settings in ({"entropy_coefficient": 0.1}, {"objective": "ppo", "normalise_advantages": False}):
        built = learner(folder, **settings)
        before = weights_of(built)
        done = train_step(built, step(0, groups))
        assert not done.skipped
        assert done.n_tokens_trained == sum(done.staleness.values()) > 0
        assert any(not torch.equal(before[name], after) for name, after in built.weights().items())


def test_the_entropy_bonus_raises_the_entropy(folder: Path) -> None:
    groups = [with_rewards(group, 0.5) for group in random_groups(2, 3, (5, 9), 67)]
    built = learner(folder, entropy_coefficient=1.0)
    entropies = [train_step(built, step(number, groups)).metrics["entropy"] for number in range(4)]
    assert entropies == sorted(entropies) and entropies[-1] > entropies[0] + 1e-3
