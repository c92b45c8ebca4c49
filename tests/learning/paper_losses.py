"""The objectives as their papers write them, token by token in float64, to be compared with `asearch.learning.objectives`.

Nothing here is shared with the code under test: sums are loops, and the softmax is the quotient of its definition.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Scalar = Tensor
CONSTANT = 8


@dataclass
class Output:
    """One sampled sequence o_i of a group."""

    group: int
    reward: float
    logits: list[list[Scalar]]
    """Of the policy in training, by token and vocabulary entry."""
    tokens: list[int]
    behaviour: list[float]
    proximal: list[float]
    reference: list[float]

    def log_p(self, t: int) -> Scalar:
        exps = [torch.exp(x) for x in self.logits[t]]
        return torch.log(exps[self.tokens[t]] / sum(exps, start=torch.zeros((), dtype=torch.float64)))

    def entropy(self, t: int) -> Scalar:
        exps = [torch.exp(x) for x in self.logits[t]]
        total = sum(exps, start=zero())
        return -sum((e / total * torch.log(e / total) for e in exps), start=zero())

    def __len__(self) -> int:
        return len(self.tokens)


Batch = list[Output]
Weight = Callable[[Output, int], float]


def zero() -> Scalar:
    return torch.zeros((), dtype=torch.float64)


def clip(x: Scalar, low: float, high: float) -> Scalar:
    value = float(x.detach())
    return x if low <= value <= high else torch.tensor(min(max(value, low), high), dtype=torch.float64)


def smaller(a: Scalar, b: Scalar) -> Scalar:
    return a if float(a.detach()) <= float(b.detach()) else b


def group_rewards(batch: Batch, group: int) -> list[float]:
    return [o.reward for o in batch if o.group == group]


def grpo_advantage(batch: Batch, o: Output) -> float:
    rewards = group_rewards(batch, o.group)
    mean = sum(rewards) / len(rewards)
    return (o.reward - mean) / math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))


def centred_advantage(batch: Batch, o: Output) -> float:
    rewards = group_rewards(batch, o.group)
    return o.reward - sum(rewards) / len(rewards)


def leave_one_out_advantage(batch: Batch, o: Output) -> float:
    others = [p.reward for p in batch if p.group == o.group and p is not o]
    return o.reward - sum(others) / len(others)


def globally_normalised_advantage(batch: Batch, o: Output) -> float:
    by_token = [centred_advantage(batch, p) for p in batch for _ in p.tokens]
    mean = sum(by_token) / len(by_token)
    std = math.sqrt(sum((a - mean) ** 2 for a in by_token) / len(by_token))
    return (centred_advantage(batch, o) - mean) / std


def ppo_term(log_p: Scalar, old: float, advantage: float, low: float, high: float) -> Scalar:
    ratio = torch.exp(log_p - old)
    return smaller(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)


def grpo(batch: Batch, beta: float = 0.0) -> Scalar:
    """arXiv 2402.03300, Eq. 3 with the estimator of Eq. 4."""
    total = zero()
    for o in batch:
        inner = zero()
        for t in range(len(o)):
            term = ppo_term(o.log_p(t), o.behaviour[t], grpo_advantage(batch, o), 0.2, 0.2)
            quotient = torch.exp(o.reference[t] - o.log_p(t))
            inner = inner + term - beta * (quotient - torch.log(quotient) - 1)
        total = total + inner / len(o)
    return -total / len(batch)


def dr_grpo(batch: Batch) -> Scalar:
    """arXiv 2503.20783: neither 1/|o_i| nor std; the constant is the generation budget."""
    total = zero()
    for o in batch:
        for t in range(len(o)):
            total = total + ppo_term(o.log_p(t), o.behaviour[t], centred_advantage(batch, o), 0.2, 0.2)
    return -total / (len(batch) * CONSTANT)


def dapo(batch: Batch) -> Scalar:
    """arXiv 2503.14476, Eq. 8, with ε_low = 0.2 and ε_high = 0.28."""
    total, n = zero(), 0
    for o in batch:
        for t in range(len(o)):
            total = total + ppo_term(o.log_p(t), o.behaviour[t], grpo_advantage(batch, o), 0.2, 0.28)
            n += 1
    return -total / n


def gspo(batch: Batch) -> Scalar:
    """arXiv 2507.18071, Eq. 5 with the ratio of Eq. 7."""
    total = zero()
    for o in batch:
        exponent = zero()
        for t in range(len(o)):
            exponent = exponent + o.log_p(t) - o.behaviour[t]
        s, advantage = torch.exp(exponent / len(o)), grpo_advantage(batch, o)
        total = total + smaller(s * advantage, clip(s, 1 - 3e-4, 1 + 4e-4) * advantage)
    return -total / len(batch)


def cispo(batch: Batch) -> Scalar:
    """arXiv 2506.13585, Eq. 4 and 5, without a lower bound and with ε_high = 5."""
    total, n = zero(), 0
    for o in batch:
        for t in range(len(o)):
            held = min(math.exp(float(o.log_p(t).detach()) - o.behaviour[t]), 6.0)
            total = total + held * grpo_advantage(batch, o) * o.log_p(t)
            n += 1
    return -total / n


def reinforce_plus_plus_baseline(batch: Batch) -> Scalar:
    """arXiv 2501.03262: reward minus group mean, normalised over the global batch, in PPO's loss."""
    total, n = zero(), 0
    for o in batch:
        for t in range(len(o)):
            total = total + ppo_term(o.log_p(t), o.behaviour[t], globally_normalised_advantage(batch, o), 0.2, 0.2)
            n += 1
    return -total / n


def rloo(batch: Batch) -> Scalar:
    """arXiv 2402.14740, §2.2: (1/k) Σ (R_i - mean of the others)·log π(y_i), here weighed by min(π_prox/π_behav, 2)."""
    total = zero()
    for o in batch:
        for t in range(len(o)):
            weight = min(math.exp(o.proximal[t] - o.behaviour[t]), 2.0)
            total = total + weight * leave_one_out_advantage(batch, o) * o.log_p(t)
    return -total / (len(batch) * CONSTANT)


def decoupled(batch: Batch, weight: Weight, dual: float | None = None) -> Scalar:
    """arXiv 2505.24298, Eq. 5, with `weight` in the place of π_prox/π_behav; `dual` is c of arXiv 1912.09729, Eq. 5."""
    total, n = zero(), 0
    for o in batch:
        advantage = grpo_advantage(batch, o)
        for t in range(len(o)):
            term = ppo_term(o.log_p(t), o.proximal[t], advantage, 0.2, 0.2)
            if dual is not None and advantage < 0 and float(term.detach()) < dual * advantage:
                term = torch.tensor(dual * advantage, dtype=torch.float64)
            total = total + weight(o, t) * term
            n += 1
    return -total / n


def with_square_kl(batch: Batch, beta: float) -> Scalar:
    """Decoupled PPO of equal behaviour and proximal weight 1, plus β times k2."""
    penalty, n = zero(), 0
    for o in batch:
        for t in range(len(o)):
            penalty = penalty + (o.log_p(t) - o.reference[t]) ** 2 / 2
            n += 1
    return decoupled(batch, lambda o, t: 1.0) + beta * penalty / n


def mean_entropy(batch: Batch, normalised: str) -> Scalar:
    """Over all tokens, or over sequences of the mean over their tokens."""
    by_sequence = [[o.entropy(t) for t in range(len(o))] for o in batch]
    if normalised == "sequence":
        return sum((sum(row, start=zero()) / len(row) for row in by_sequence), start=zero()) / len(by_sequence)
    return sum((h for row in by_sequence for h in row), start=zero()) / sum(map(len, by_sequence))


def token_ratio(o: Output, t: int) -> float:
    return math.exp(o.proximal[t] - o.behaviour[t])


def sequence_ratio(o: Output, t: int) -> float:
    del t
    return math.prod(token_ratio(o, u) for u in range(len(o)))


def geometric_ratio(o: Output, t: int) -> float:
    return sequence_ratio(o, t) ** (1 / len(o))
