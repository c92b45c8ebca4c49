import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asearch.errors import ConfigError
from asearch.learning.logprobs import ROWS, token_logprobs
from asearch.learning.objectives import LossTokens, ObjectiveSettings, decoupled_ppo, objectives, policy_diagnostics, sft

FINITE = st.floats(-4, 0)


def tokens(current: list[float], behaviour: list[float], proximal: list[float], advantages: list[float]) -> LossTokens:
    n = len(current)
    return LossTokens(
        logprobs_N=torch.tensor(current, dtype=torch.float64, requires_grad=True),
        behaviour_N=torch.tensor(behaviour, dtype=torch.float64),
        proximal_N=torch.tensor(proximal, dtype=torch.float64),
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        episode_N=torch.arange(n),
        group_N=torch.zeros(n, dtype=torch.int64),
    )


def reference(cur: float, behav: float, prox: float, adv: float, s: ObjectiveSettings) -> tuple[float, float]:
    """Loss and its derivative in the current log-probability, from the definition, case by case."""
    weight = math.exp(prox - behav)
    if s.behaviour_cap is not None and weight > s.behaviour_cap:
        weight = 0.0 if s.behaviour_cap_mode == "mask" else s.behaviour_cap
    ratio = math.exp(cur - prox)
    low, high = 1 - s.clip_low, 1 + s.clip_high
    clipped = min(max(ratio, low), high)
    if ratio * adv <= clipped * adv:
        return -weight * ratio * adv, -weight * ratio * adv
    return -weight * clipped * adv, 0.0


@settings(max_examples=200)
@given(
    st.lists(st.tuples(FINITE, FINITE, FINITE, st.floats(-3, 3)), min_size=1, max_size=6),
    st.sampled_from([None, 1.5, 5.0]),
    st.sampled_from(["mask", "clamp"]),
)
def test_decoupled_ppo_and_its_gradient_match_the_definition(
    rows: list[tuple[float, float, float, float]], cap: float | None, mode: str
) -> None:
    s = ObjectiveSettings(clip_low=0.2, clip_high=0.4, behaviour_cap=cap, behaviour_cap_mode=mode)  # type: ignore[arg-type]
    batch = tokens(*[list(column) for column in zip(*rows, strict=True)])
    loss = decoupled_ppo(batch, s).loss_N
    loss.sum().backward()
    expected = [reference(*row, s) for row in rows]
    assert loss.tolist() == pytest.approx([e[0] for e in expected], rel=1e-9, abs=1e-12)
    assert batch.logprobs_N.grad is not None
    assert batch.logprobs_N.grad.tolist() == pytest.approx([e[1] for e in expected], rel=1e-9, abs=1e-12)


def test_clip_bounds_are_separate_and_capped_tokens_have_no_weight() -> None:
    s = ObjectiveSettings(clip_low=0.1, clip_high=0.5)
    batch = tokens([0.3, -0.3, 0.0], [0.0, 0.0, -2.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0])
    result = decoupled_ppo(batch, s)
    assert result.loss_N.tolist() == pytest.approx([-math.exp(0.3), 0.9, 0.0])
    assert result.sums["clip_fraction"] == 1
    assert result.sums["behaviour_capped_fraction"] == 1


def test_on_policy_the_gradient_is_that_of_reinforce() -> None:
    batch = tokens([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [0.7, -1.2])
    decoupled_ppo(batch, ObjectiveSettings()).loss_N.sum().backward()
    assert batch.logprobs_N.grad is not None
    assert batch.logprobs_N.grad.tolist() == pytest.approx([-0.7, 1.2])


def test_sft_reads_nothing_but_log_probabilities() -> None:
    batch = tokens([-1.0, -2.0], [math.nan] * 2, [math.nan] * 2, [0.0, 0.0])
    assert sft(batch, ObjectiveSettings()).loss_N.tolist() == [1.0, 2.0]
    assert not objectives.get("sft").uses_advantages


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'decoupled_ppo'"):
        objectives.get("decoupled_pppo")


def test_diagnostics() -> None:
    batch = tokens([-1.0, -2.0], [-1.5, -1.0], [-1.0, -2.0], [1.0, 1.0])
    sums = policy_diagnostics(batch, torch.tensor([0.5, 0.25]))
    assert sums["entropy"] == 0.75
    assert sums["kl_k1"].item() == pytest.approx(0.5)
    assert sums["kl_k3"].item() == pytest.approx((math.exp(0.5) - 1.5) + (math.exp(-1.0) - 0.0))


@pytest.mark.parametrize("n", [1, 7, ROWS + 5])
def test_log_probabilities_entropies_and_gradients_match_torch(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(11, 4, generator=generator, requires_grad=True)
    hidden = torch.randn(n, 4, generator=generator) * 3
    targets = torch.randint(0, 11, (n,), generator=generator)
    upstream = torch.randn(n, generator=generator)

    def gradient(logprobs: Tensor) -> Tensor:
        return torch.autograd.grad((logprobs * upstream).sum(), weight)[0]

    expected = torch.log_softmax(hidden @ weight.t(), -1)
    logprobs, entropy = token_logprobs(hidden @ weight.t(), targets)
    torch.testing.assert_close(logprobs, expected.gather(1, targets[:, None]).squeeze(1))
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1))
    torch.testing.assert_close(gradient(logprobs), gradient(expected.gather(1, targets[:, None]).squeeze(1)))
