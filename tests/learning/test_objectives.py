import math
from random import Random
from typing import Literal

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asearch.configuration.loading import change_settings, load_settings
from asearch.errors import ConfigError
from asearch.learning.advantages import GAE, estimators, whiten
from asearch.learning.gae import gae
from asearch.learning.logprobs import ROWS, token_logprobs
from asearch.learning.objectives import LossTokens, merge, objectives, policy_diagnostics, policy_loss
from asearch.learning.presets import PRESETS, Algorithm, CapMode, KlEstimator, Level, RejectionLevel, preset
from asearch.training.settings import TrainerSettings, decode_settings

FINITE = st.floats(-4, 0)


def tokens(
    current: list[float],
    behaviour: list[float],
    proximal: list[float],
    advantages: list[float],
    segments: list[int] | None = None,
    dtype: torch.dtype = torch.float64,
    reference: list[float] | None = None,
) -> LossTokens:
    n = len(current)
    return LossTokens(
        logprobs_N=torch.tensor(current, dtype=dtype, requires_grad=True),
        behaviour_N=torch.tensor(behaviour, dtype=dtype),
        proximal_N=torch.tensor(proximal, dtype=dtype),
        advantages_N=torch.tensor(advantages, dtype=dtype),
        segment_N=torch.arange(n) if segments is None else torch.tensor(segments),
        episode_N=torch.arange(n),
        group_N=torch.zeros(n, dtype=torch.int64),
        reference_N=None if reference is None else torch.tensor(reference, dtype=dtype),
    )


def gradient(batch: LossTokens, name: str, algorithm: Algorithm) -> Tensor:
    loss_N = policy_loss(objectives.get(name), batch, algorithm).loss_N
    return torch.autograd.grad(loss_N.sum(), batch.logprobs_N)[0]


def reference(cur: float, behav: float, prox: float, adv: float, s: Algorithm) -> tuple[float, float]:
    """Loss and its derivative in the current log-probability, from the definition, case by case."""
    weight = math.exp(prox - behav)
    if s.behaviour_cap and weight > s.behaviour_cap:
        weight = 0.0 if s.behaviour_cap_mode == "mask" else s.behaviour_cap
    ratio = math.exp(cur - prox)
    low, high = 1 - s.clip_low, 1 + s.clip_high
    clipped = min(max(ratio, low), high)
    if ratio * adv <= clipped * adv:
        return -weight * ratio * adv, -weight * ratio * adv
    return -weight * clipped * adv, 0.0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(FINITE, FINITE, FINITE, st.floats(-3, 3)), min_size=1, max_size=6),
    st.sampled_from([0.0, 1.5, 5.0]),
    st.sampled_from(["mask", "clamp"]),
)
def test_decoupled_ppo_and_its_gradient_match_the_definition(
    rows: list[tuple[float, float, float, float]], cap: float, mode: Literal["mask", "clamp"]
) -> None:
    s = Algorithm(clip_low=0.2, clip_high=0.4, behaviour_cap=cap, behaviour_cap_mode=mode)
    batch = tokens(*[list(column) for column in zip(*rows, strict=True)])
    loss = policy_loss(objectives.get("decoupled_ppo"), batch, s).loss_N
    loss.sum().backward()
    expected = [reference(*row, s) for row in rows]
    assert loss.tolist() == pytest.approx([e[0] for e in expected], rel=1e-9, abs=1e-12)
    assert batch.logprobs_N.grad is not None
    assert batch.logprobs_N.grad.tolist() == pytest.approx([e[1] for e in expected], rel=1e-9, abs=1e-12)


def test_clip_bounds_are_separate_and_capped_tokens_have_no_weight() -> None:
    s = Algorithm(clip_low=0.1, clip_high=0.5)
    batch = tokens([0.3, -0.3, 0.0], [0.0, 0.0, -2.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0])
    result = policy_loss(objectives.get("decoupled_ppo"), batch, s)
    assert result.loss_N.tolist() == pytest.approx([-math.exp(0.3), 0.9, 0.0])
    assert result.sums["clip_fraction"] == 1
    assert result.sums["behaviour_capped_fraction"] == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FINITE, st.floats(-3, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_on_policy_every_objective_has_the_gradient_of_reinforce(rows: list[tuple[float, float, int]]) -> None:
    now, advantages, segments = (list(column) for column in zip(*rows, strict=True))
    # Sequence ratios and weights belong to whole segments, and so do the advantages they are taken with.
    of_segment = dict(zip(segments, advantages, strict=True))
    advantages = [of_segment[s] for s in segments]
    batch = tokens(now, now, now, advantages, segments)
    for name, algorithm in PRESETS.items():
        if objectives.get(name).uses_advantages:
            assert gradient(batch, name, algorithm).tolist() == pytest.approx([-a for a in advantages]), name


EXTREME = st.floats(-80, 80)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(EXTREME, EXTREME, st.sampled_from([-2.0, 0.0, 1.0]), st.integers(0, 2)), min_size=1, max_size=12),
    st.sampled_from([name for name in PRESETS if name != "sft"]),
    st.sampled_from(["none", "token", "sequence"]),
    st.sampled_from(["none", "token", "sequence", "geometric"]),
    st.sampled_from(["mask", "clamp"]),
    st.sampled_from(["k2", "k3"]),
)
def test_policies_far_apart_never_make_a_loss_that_is_no_number(
    rows: list[tuple[float, float, float, int]],
    name: str,
    correction: Level,
    rejection: RejectionLevel,
    mode: CapMode,
    estimator: KlEstimator,
) -> None:
    to_behaviour, to_proximal, advantages, segments = (list(column) for column in zip(*rows, strict=True))
    now = [-1.0] * len(rows)
    behaviour, proximal = [-1.0 - x for x in to_behaviour], [-1.0 - x for x in to_proximal]
    batch = tokens(now, behaviour, proximal, advantages, segments, torch.float32, reference=behaviour)
    algorithm = msgspec.structs.replace(
        preset(name),
        correction=correction,
        rejection=rejection,
        behaviour_cap=5.0,
        behaviour_cap_mode=mode,
        dual_clip=3.0,
        kl_coefficient=0.1,
        kl_estimator=estimator,
    )
    result = policy_loss(objectives.get(name), batch, algorithm)
    assert not result.loss_N.isnan().any()
    assert not torch.autograd.grad(result.loss_N.sum(), batch.logprobs_N)[0].isnan().any()
    assert not any(value.isnan() for value in result.sums.values())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(FINITE, FINITE, FINITE, st.floats(-2, 2), st.integers(0, 3)), min_size=2, max_size=10),
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(PRESETS)),
)
def test_the_order_of_tokens_does_not_matter(
    rows: list[tuple[float, float, float, float, int]], random: Random, name: str
) -> None:
    shuffled = random.sample(rows, len(rows))
    results: list[list[tuple[tuple[float, float, float, float, int], float, float]]] = []
    for order in (rows, shuffled):
        columns = [list(column) for column in zip(*order, strict=True)]
        batch = tokens(columns[0], columns[1], columns[2], columns[3], [int(s) for s in columns[4]])
        algorithm = msgspec.structs.replace(preset(name), correction="sequence", old_policy="proximal", rejection="geometric")
        loss_N = policy_loss(objectives.get(name), batch, algorithm).loss_N
        (gradient_N,) = torch.autograd.grad(loss_N.sum(), batch.logprobs_N)
        results.append(sorted(zip(order, loss_N.tolist(), gradient_N.tolist(), strict=True)))
    for (_, loss, slope), (_, other_loss, other_slope) in zip(*results, strict=True):
        assert (other_loss, other_slope) == pytest.approx((loss, slope), rel=1e-9, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(-2, 2), st.floats(0.5, 1), st.floats(0, 1))
def test_generalised_advantages_lie_between_their_extremes(values: list[float], reward: float, gamma: float, lam: float) -> None:
    n = len(values)
    without = gae([0.0] * n, reward, gamma, 1.0)
    assert without.advantages == pytest.approx([reward * gamma ** (n - 1 - t) for t in range(n)])
    assert without.returns == without.advantages
    step = gae(values, reward, gamma, 0.0)
    after = [*(gamma * v for v in values[1:]), reward]
    assert step.advantages == pytest.approx([next_value - v for next_value, v in zip(after, values, strict=True)])
    found = gae(values, reward, gamma, lam)
    assert found.returns == pytest.approx([a + v for a, v in zip(found.advantages, values, strict=True)])


def test_sft_reads_nothing_but_log_probabilities() -> None:
    batch = tokens([-1.0, -2.0], [math.nan] * 2, [math.nan] * 2, [0.0, 0.0])
    assert policy_loss(objectives.get("sft"), batch, preset("sft")).loss_N.tolist() == [1.0, 2.0]
    assert not objectives.get("sft").uses_advantages


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'decoupled_ppo'"):
        objectives.get("decoupled_pppo")


@pytest.mark.parametrize(
    ("given_settings", "why"),
    [
        ({"objective": "dapo", "correction": "token"}, 'set old_policy = "proximal" as well'),
        ({"dual_clip": 0.9}, "dual_clip must be above 1"),
        ({"rejection": "token", "rejection_high": 0.5}, "1 between them"),
        ({"rejection": "geometric", "rejection_low": 1.2}, "1 between them"),
        ({"gae_lambda": 1.5}, "gae_lambda must be from 0 to 1"),
        ({"clip_low": -0.1}, "clip_low must not be negative"),
        ({"constant_length": 0}, "constant_length must be at least 1"),
        ({"old_policy": "rollout"}, "old_policy"),
    ],
)
def test_values_that_do_not_go_together_are_refused(given_settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        decode_settings(msgspec.json.encode(given_settings))


def test_an_objective_brings_the_values_of_its_paper_and_what_is_set_wins() -> None:
    dapo = decode_settings(b'{"objective": "dapo"}').algorithm
    assert (dapo.clip_low, dapo.clip_high, dapo.normalisation, dapo.advantage) == (0.2, 0.28, "token", "grpo")
    assert (dapo.old_policy, dapo.correction) == ("behaviour", "none")
    mine = TrainerSettings(objective="dapo", old_policy="proximal", correction="token", behaviour_cap=0.0).algorithm
    assert (mine.clip_high, mine.correction, mine.behaviour_cap) == (0.28, "token", 0.0)
    assert TrainerSettings().algorithm == Algorithm()


def test_diagnostics() -> None:
    batch = tokens([-1.0, -2.0], [-1.5, -1.0], [-1.0, -2.0], [1.0, 1.0])
    sums = policy_diagnostics(batch, torch.tensor([0.5, 0.25]))
    assert sums["entropy"] == 0.75
    assert sums["kl_k1"].item() == pytest.approx(0.5)
    assert sums["kl_k3"].item() == pytest.approx((math.exp(0.5) - 1.5) + (math.exp(-1.0) - 0.0))
    assert sums["logprob_difference"].item() == pytest.approx(1.5)
    assert sums["logprob_difference_max"].item() == pytest.approx(1.0)
    other = {name: value * 3 for name, value in sums.items()}
    merged = merge([sums, other])
    assert merged["logprob_difference"].item() == pytest.approx(6.0)
    assert merged["logprob_difference_max"].item() == pytest.approx(3.0)


def entropy_of(logits: Tensor) -> Tensor:
    values = torch.log_softmax(logits, -1)
    return -(values.exp() * values).sum(-1)


@pytest.mark.parametrize("n", [1, 7, ROWS + 5])
def test_log_probabilities_entropies_and_gradients_match_torch(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(11, 4, generator=generator, requires_grad=True)
    hidden = torch.randn(n, 4, generator=generator) * 3
    targets = torch.randint(0, 11, (n,), generator=generator)
    upstream = torch.randn(2, n, generator=generator)

    def gradient(*values: Tensor) -> Tensor:
        return torch.autograd.grad(sum((v * u).sum() for v, u in zip(values, upstream, strict=False)), weight)[0]

    expected = torch.log_softmax(hidden @ weight.t(), -1)
    chosen = expected.gather(1, targets[:, None]).squeeze(1)
    logprobs, entropy = token_logprobs(hidden @ weight.t(), targets)
    torch.testing.assert_close(logprobs, chosen)
    torch.testing.assert_close(entropy, entropy_of(hidden @ weight.t()))
    torch.testing.assert_close(gradient(logprobs), gradient(chosen))
    logits = hidden @ weight.t()
    plain = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(
        gradient(*token_logprobs(hidden @ weight.t(), targets)), gradient(plain, entropy_of(logits)), rtol=1e-4, atol=1e-4
    )
    (alone,) = torch.autograd.grad(token_logprobs(hidden @ weight.t(), targets)[1].sum(), weight)
    torch.testing.assert_close(alone, torch.autograd.grad(entropy_of(hidden @ weight.t()).sum(), weight)[0], rtol=1e-4, atol=1e-4)


def test_another_objective_than_the_recipes_takes_nothing_of_the_recipes() -> None:
    """The toy recipe sets an advantage and a bound of the clip, which are those of its objective."""
    toy = load_settings("toy").trainer
    assert (toy.objective, toy.algorithm.advantage, toy.algorithm.clip_high) == ("decoupled_ppo", "grpo_mean", 0.3)
    assert load_settings("toy", ["trainer.objective=decoupled_ppo"]).trainer == toy
    assert load_settings("toy", ["trainer.objective=ppo"]).trainer.algorithm == preset("ppo")
    both = load_settings("toy", ["trainer.clip_high=0.5", "trainer.objective=gspo"]).trainer.algorithm
    assert (both.clip_low, both.clip_high, both.advantage) == (3e-4, 0.5, "grpo")
    recorded = change_settings(load_settings("toy"), ["trainer.objective=rloo"]).trainer
    assert recorded.algorithm == preset("rloo")
    assert recorded.lr == toy.lr


def test_groups_of_equal_rewards_are_kept_where_they_have_advantages() -> None:
    kept = {name for name in PRESETS if load_settings("toy", [f"trainer.objective={name}"]).run.equal_rewards == "keep"}
    assert kept == {"ppo", "reinforce_plus_plus_baseline"}
    for name in sorted(PRESETS.keys() - {"sft"}):
        algorithm = preset(name)
        # Two groups, of which the second has equal rewards and more tokens.
        rewards, n_tokens = [[0.0, 1.0], [1.0, 1.0]], [[3, 2], [4, 5]]
        advantages = estimators.get(algorithm.advantage)(rewards)
        if algorithm.normalise_advantages and algorithm.advantage != GAE:
            advantages = whiten(advantages, n_tokens)
        assert any(advantages[1]) == algorithm.equal_rewards_teach == (name in kept), name
    assert load_settings("toy", ["trainer.normalise_advantages=true"]).run.equal_rewards == "keep"
    assert load_settings("toy", ["trainer.objective=ppo", "run.equal_rewards=discard"]).run.equal_rewards == "discard"
    assert load_settings("toy", ["trainer.kl_coefficient=0.1", "run.equal_rewards=keep"]).run.equal_rewards == "keep"
    with pytest.raises(ConfigError, match="equal_rewards"):
        load_settings("toy", ["run.equal_rewards=drop"])
    # What a run was begun with stands.
    begun = load_settings("toy")
    assert change_settings(begun, ["trainer.objective=ppo"]).run == begun.run
