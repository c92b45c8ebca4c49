"""Every objective with its estimator and normalisation against the paper's equation: loss and gradient in the logits."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from asearch.learning.advantages import GAE, estimators, whiten
from asearch.learning.gae import gae
from asearch.learning.logprobs import token_logprobs
from asearch.learning.normalisation import normalisations
from asearch.learning.objectives import LossTokens, ObjectiveLoss, objectives, policy_loss
from asearch.learning.objectives.value import value_loss
from asearch.learning.presets import PRESETS, Algorithm, preset
from tests.learning import paper_losses as paper

TOLERANCE = 1e-5
VOCABULARY = 7
GROUPS = [[0.0, 1.0, 0.25], [1.0, -1.0, 0.5, 0.0]]
SPREAD = 0.5
"""Standard deviation, in nats, between the policies that play a part."""


class Sampled:
    """Sequences of two groups, and what five policies think of their tokens."""

    def __init__(self, spread: float = SPREAD, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.rewards = GROUPS
        self.members = [(group, reward) for group, rewards in enumerate(GROUPS) for reward in rewards]
        self.lengths = [int(n) for n in rng.integers(2, 7, len(self.members))]
        n = sum(self.lengths)
        self.logits_NV = rng.normal(0, 1.5, (n, VOCABULARY))
        self.targets_N = rng.integers(0, VOCABULARY, n)
        log_p = self.logits_NV - np.log(np.exp(self.logits_NV).sum(1, keepdims=True))
        now_N = log_p[np.arange(n), self.targets_N]
        # A whole sequence is off by some, and each of its tokens by some more, or no sequence would leave its bounds.
        shift_N = np.repeat(rng.normal(0, 0.2, len(self.lengths)), self.lengths)
        self.proximal_N = now_N + rng.normal(0, spread, n) + shift_N
        self.behaviour_N = self.proximal_N + 1.5 * rng.normal(0, spread, n) + 2 * shift_N
        self.reference_N = now_N + rng.normal(0, spread, n)

    def slices(self) -> list[slice]:
        ends = np.cumsum(self.lengths)
        return [slice(int(end) - n, int(end)) for end, n in zip(ends, self.lengths, strict=True)]

    def batch(self) -> tuple[paper.Batch, list[list[Tensor]]]:
        logits = [[torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in row] for row in self.logits_NV]
        batch = [
            paper.Output(
                group,
                reward,
                logits[at],
                self.targets_N[at].tolist(),
                self.behaviour_N[at].tolist(),
                self.proximal_N[at].tolist(),
                self.reference_N[at].tolist(),
            )
            for (group, reward), at in zip(self.members, self.slices(), strict=True)
        ]
        return batch, logits

    def advantages(self, algorithm: Algorithm) -> list[float]:
        found = estimators.get(algorithm.advantage)(self.rewards)
        if algorithm.normalise_advantages:
            numbers = iter(self.lengths)
            found = whiten(found, [[next(numbers) for _ in group] for group in self.rewards])
        return [a for group in found for a in group]


def ours(
    data: Sampled, name: str, algorithm: Algorithm, advantages_N: Tensor | None = None
) -> tuple[Tensor, Tensor, ObjectiveLoss]:
    """Loss, gradient in the logits and diagnostics, in float32 as the trainer computes them."""
    n_sequences = len(data.lengths)
    each = torch.tensor(data.lengths)
    segment_N = torch.repeat_interleave(torch.arange(n_sequences), each)

    def column(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    parameter = column(data.logits_NV).requires_grad_()
    logprobs_N, entropy_N = token_logprobs(parameter * 1.0, torch.from_numpy(data.targets_N))
    if advantages_N is None:
        advantages_N = column(data.advantages(algorithm))[segment_N]
    tokens = LossTokens(
        logprobs_N=logprobs_N,
        behaviour_N=column(data.behaviour_N),
        proximal_N=column(data.proximal_N),
        advantages_N=advantages_N,
        segment_N=segment_N,
        episode_N=segment_N,
        group_N=torch.tensor([group for group, _ in data.members])[segment_N],
        reference_N=column(data.reference_N),
        entropy_N=entropy_N,
    )
    result = policy_loss(objectives.get(name), tokens, algorithm)
    weigh = normalisations.get(algorithm.normalisation)
    weights = weigh(data.lengths, list(range(n_sequences)), algorithm.constant_length)
    loss = (result.loss_N * column(weights.by_segment)[segment_N]).sum() / weights.divisor
    (gradient,) = torch.autograd.grad(loss, parameter)
    return loss.detach(), gradient, result


def error_of(data: Sampled, name: str, algorithm: Algorithm, expected: Callable[[paper.Batch], Tensor]) -> ObjectiveLoss:
    """Asserts that loss and gradient agree, and that the gradient says something."""
    batch, logits = data.batch()
    loss = expected(batch)
    flat = [x for row in logits for x in row]
    gradient = torch.stack(torch.autograd.grad(loss, flat, materialize_grads=True)).view(-1, VOCABULARY)
    found, found_gradient, result = ours(data, name, algorithm)
    assert gradient.abs().max() > 1e-4
    assert abs(float(found) - float(loss.detach())) < TOLERANCE
    assert float((found_gradient.double() - gradient).abs().max()) < TOLERANCE
    return result


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", paper.grpo),
        ("dr_grpo", paper.dr_grpo),
        ("dapo", paper.dapo),
        ("cispo", paper.cispo),
        ("reinforce_plus_plus_baseline", paper.reinforce_plus_plus_baseline),
        ("rloo", paper.rloo),
        ("decoupled_ppo", lambda batch: paper.decoupled(batch, lambda o, t: r if (r := paper.token_ratio(o, t)) <= 5 else 0.0)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_presets_are_the_equations_of_their_papers(name: str, expected: Callable[[paper.Batch], Tensor], seed: int) -> None:
    algorithm = msgspec.structs.replace(preset(name), constant_length=paper.CONSTANT)
    result = error_of(Sampled(spread=1.0, seed=seed), name, algorithm, expected)
    clipped = result.sums.get("clip_fraction")
    assert clipped is None or 0 < float(clipped) < result.loss_N.shape[0]


def test_gspo_is_its_equation_with_sequences_inside_and_outside_the_clip() -> None:
    data = Sampled(spread=1e-3)
    data.behaviour_N = data.proximal_N + 0.5e-3 * np.random.default_rng(4).normal(0, 1, len(data.behaviour_N))
    result = error_of(data, "gspo", preset("gspo"), paper.gspo)
    assert 0 < float(result.sums["clip_fraction"]) < result.loss_N.shape[0]


def outside(measure: Callable[[paper.Output, int], float], low: float, high: float) -> Callable[[paper.Output, int], bool]:
    return lambda o, t: not low <= measure(o, t) <= high


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({"behaviour_cap": 0.0}, paper.token_ratio),
        ({"behaviour_cap": 2.0, "behaviour_cap_mode": "clamp"}, lambda o, t: min(paper.token_ratio(o, t), 2.0)),
        (
            {"correction": "sequence", "behaviour_cap": 2.0, "behaviour_cap_mode": "clamp"},
            lambda o, t: min(paper.sequence_ratio(o, t), 2.0),
        ),
        (
            {"behaviour_cap": 0.0, "rejection": "token"},
            lambda o, t: 0.0 if outside(paper.token_ratio, 0.5, 2.0)(o, t) else paper.token_ratio(o, t),
        ),
        (
            {"behaviour_cap": 0.0, "correction": "sequence", "rejection": "sequence", "rejection_high": 3.0},
            lambda o, t: 0.0 if outside(paper.sequence_ratio, 1 / 3, 3.0)(o, t) else paper.sequence_ratio(o, t),
        ),
        (
            {"correction": "none", "rejection": "geometric", "rejection_high": 1.5, "rejection_low": 0.8},
            lambda o, t: 0.0 if outside(paper.geometric_ratio, 0.8, 1.5)(o, t) else 1.0,
        ),
    ],
    ids=["uncapped", "tis", "sequence_tis", "mis", "sequence_mis", "geometric_rejection"],
)
def test_corrections_are_their_definitions(settings: dict[str, Any], weight: paper.Weight) -> None:
    algorithm = msgspec.structs.replace(preset("decoupled_ppo"), **settings)
    result = error_of(Sampled(), "decoupled_ppo", algorithm, lambda batch: paper.decoupled(batch, weight))
    assert algorithm.refusal() is None
    n = result.loss_N.shape[0]
    if algorithm.behaviour_cap:
        assert algorithm.correction == "none" or 0 < float(result.sums["behaviour_capped_fraction"]) < n
    if algorithm.rejection != "none":
        assert 0 < float(result.sums["rejected_fraction"]) < n


def test_dual_clip_bounds_the_loss_of_bad_tokens() -> None:
    algorithm = msgspec.structs.replace(preset("decoupled_ppo"), dual_clip=1.5, correction="none")
    result = error_of(Sampled(), "decoupled_ppo", algorithm, lambda batch: paper.decoupled(batch, lambda o, t: 1.0, dual=1.5))
    assert float(result.sums["dual_clip_fraction"]) > 0


def test_the_divergence_from_a_reference_is_added_outside_the_weight() -> None:
    low_variance = msgspec.structs.replace(preset("grpo"), kl_coefficient=0.3)
    result = error_of(Sampled(), "grpo", low_variance, lambda batch: paper.grpo(batch, beta=0.3))
    assert float(result.sums["kl_reference"]) > 0
    square = Algorithm(correction="none", kl_coefficient=0.3, kl_estimator="k2")
    error_of(Sampled(), "decoupled_ppo", square, lambda batch: paper.with_square_kl(batch, 0.3))


@pytest.mark.parametrize(("name", "normalised"), [("decoupled_ppo", "token"), ("grpo", "sequence")])
def test_the_entropy_is_taken_off_outside_the_weight(name: str, normalised: str) -> None:
    algorithm = msgspec.structs.replace(preset(name), entropy_coefficient=0.7, correction="none", normalisation=normalised)
    plain = msgspec.structs.replace(algorithm, entropy_coefficient=0.0)

    def expected(batch: paper.Batch) -> Tensor:
        whole = paper.decoupled(batch, lambda o, t: 1.0) if name == "decoupled_ppo" else paper.grpo(batch)
        return whole - 0.7 * paper.mean_entropy(batch, normalised)

    error_of(Sampled(), name, algorithm, expected)
    with pytest.raises(AssertionError):
        error_of(Sampled(), name, plain, expected)


def test_ppo_with_a_critic_is_its_equations() -> None:
    data, algorithm = Sampled(spread=1.0), preset("ppo")
    assert algorithm.advantage == GAE
    rng = np.random.default_rng(5)
    values = [rng.normal(0.3, 0.5, n).tolist() for n in data.lengths]
    gamma, lam = 0.99, 0.95
    by_token: list[float] = []
    for (_, reward), row in zip(data.members, values, strict=True):
        for t in range(len(row)):
            # arXiv 1506.02438, Eq. 16, as the sum that it is before it becomes a recursion.
            total = 0.0
            for ahead in range(len(row) - t):
                u = t + ahead
                last = u == len(row) - 1
                delta = (reward if last else 0.0) + gamma * (0.0 if last else row[u + 1]) - row[u]
                total += (gamma * lam) ** ahead * delta
            by_token.append(total)
    found = [gae(row, reward, gamma, lam) for (_, reward), row in zip(data.members, values, strict=True)]
    assert [a for one in found for a in one.advantages] == pytest.approx(by_token, abs=1e-12)
    assert found[0].returns == pytest.approx([a + v for a, v in zip(by_token, values[0], strict=False)], abs=1e-12)

    batch, logits = data.batch()
    total, place = paper.zero(), 0
    for o in batch:
        for t in range(len(o)):
            total = total + paper.ppo_term(o.log_p(t), o.behaviour[t], by_token[place], 0.2, 0.2)
            place += 1
    expected = -total / place
    gradient = torch.stack(torch.autograd.grad(expected, [x for row in logits for x in row], materialize_grads=True)).view(
        -1, VOCABULARY
    )
    loss, found_gradient, _ = ours(data, "ppo", algorithm, torch.tensor(by_token, dtype=torch.float32))
    assert abs(float(loss) - float(expected.detach())) < TOLERANCE
    assert float((found_gradient.double() - gradient).abs().max()) < TOLERANCE


@pytest.mark.parametrize("bound", [0.0, 0.3])
def test_the_critics_loss_is_its_definition(bound: float) -> None:
    rng = np.random.default_rng(6)
    now, before, returns = (rng.normal(0, 1, 40) for _ in range(3))
    values = torch.tensor(now, requires_grad=True)
    loss_N, clipped_N = value_loss(values, torch.tensor(before), torch.tensor(returns), bound)
    loss_N.sum().backward()
    assert values.grad is not None
    for i, (v, old, target) in enumerate(zip(now, before, returns, strict=True)):
        plain, slope = (v - target) ** 2, v - target
        if bound:
            near = min(max(v, old - bound), old + bound)
            if (near - target) ** 2 > plain:
                plain, slope = (near - target) ** 2, 0.0
                assert clipped_N[i]
        assert float(loss_N[i].detach()) == pytest.approx(plain / 2, abs=1e-12)
        assert float(values.grad[i]) == pytest.approx(slope, abs=1e-12)
    assert bool(clipped_N.any()) == bool(bound)


def test_every_preset_has_an_objective_and_goes_together() -> None:
    assert sorted(PRESETS) == objectives.names()
    for name in PRESETS:
        algorithm = preset(name)
        assert algorithm.refusal() is None
        estimators.get(algorithm.advantage)
        normalisations.get(algorithm.normalisation)
        assert all(not isinstance(x := getattr(algorithm, f), float) or math.isfinite(x) for f in algorithm.__struct_fields__)
