"""Packing, recomputation, context shares and kernels.

Megatron is in this process (see `in_process`), so pytest does not collect it by name.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from asearch.learning.normalisation import TokenWeights
from asearch.models.rope import Rope
from tests.training.in_process import LENGTHS, assert_equal, gradients, learner, sequences

# What imports megatron comes after the shim that `in_process` installs.
# isort: split
from asearch.training import attention, kernels
from asearch.training.attention import packed_layout
from asearch.training.context import Split, context_layout
from asearch.training.microbatch import micro_batches


def test_packed_is_unpacked_and_sequences_do_not_see_each_other(folder: Path) -> None:
    built = learner(folder, objective="sft")
    chosen = sequences(LENGTHS, built.model_config.vocab_size)
    weights = TokenWeights([1.0] * len(chosen), sum(len(s.trained_N) for s in chosen))
    found = []
    for budget in (1, 64, 10_000):
        sums = built.accumulate(micro_batches(chosen, [1.0] * len(chosen), weights, budget))
        found.append((float(sums["loss"]), gradients(built)))
        found[-1] = (found[-1][0], {name: g.clone() for name, g in found[-1][1].items()})
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert max(float((gradient[n] - found[0][1][n]).abs().max()) for n in gradient) < 1e-6

    ids = torch.cat([torch.from_numpy(s.ids_T) for s in chosen])
    changed = ids.clone()
    changed[40:79] = 5
    layout, rows = packed_layout(LENGTHS), torch.arange(len(ids))
    with torch.no_grad():
        before, after = built.module(ids, layout, rows), built.module(changed, layout, rows)
    others = torch.cat([rows[:40], rows[79:]])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[40:79], after[40:79])


def test_recomputed_activations_give_the_same_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    attend = attention.PackedAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(now)
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(attention.PackedAttention, "forward", counted)
    chosen = sequences(LENGTHS, 67)
    packed = micro_batches(chosen, [1.0, -1.0] * 4, TokenWeights([1.0] * len(chosen), 50), 64)
    found: dict[str, dict[str, Tensor]] = {}
    for now in ("none", "selective", "full"):
        built = learner(folder, recompute=now)
        built.accumulate(packed)
        found[now] = {name: g.clone() for name, g in gradients(built).items()}
    for how in ("selective", "full"):
        assert calls.count(how) == 2 * calls.count("none"), how
        assert_equal(found[how], found["none"])


@pytest.mark.parametrize(("context_size", "tensor_size"), [(2, 1), (2, 2), (3, 2), (4, 4)])
def test_context_ranks_hold_every_token_once_and_equally_many(context_size: int, tensor_size: int) -> None:
    lengths = [40, 39, 37, 20, 20, 3, 1]
    ids_T, rows_N = torch.arange(100, 100 + sum(lengths)), torch.arange(0, sum(lengths), 3)
    seen: list[int] = []
    shapes, places = set[int](), torch.zeros(len(rows_N), dtype=torch.int64)
    for rank in range(context_size):
        layout, rows_M, held = context_layout(lengths, rows_N, Split(tensor_size, rank, context_size))
        assert len(layout.source_T) % tensor_size == 0
        shapes.add(len(layout.source_T))
        # The row of a loss token is where its input token lies.
        assert torch.equal(ids_T[layout.source_T][rows_M], ids_T[rows_N[held.held_M]])
        assert torch.equal(held.source_N[held.held_M], rank * held.n_most + torch.arange(len(rows_M)))
        places[held.held_M] += 1
        seen += layout.source_T.tolist()
    assert set(seen) == set(range(sum(lengths)))
    assert len(shapes) == 1
    assert bool((places == 1).all())


def test_kernels_match_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 96, generator=generator, requires_grad=True)
    weight = torch.rand(96, generator=generator, requires_grad=True)
    cos, sin = kernels.rotary_tables(100, 6, 16, Rope(1e4))

    def turned(value: Tensor) -> Tensor:
        a, b = value.view(-1, 6, 2, 8).unbind(2)
        return value * cos.repeat(3, 1) + torch.stack((b, a), 2).view_as(value) * sin.repeat(3, 1)

    pairs = [
        (kernels.swiglu(x), silu(x[:, :48]) * x[:, 48:]),
        (kernels.rms_norm(x, weight, 1e-6), x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight),
        (kernels.rotate(x, cos, sin, 16), turned(x)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
        upstream = torch.randn(ours.shape, generator=generator)
        found = torch.autograd.grad(ours, (x, weight), upstream, allow_unused=True, retain_graph=True)
        expected = torch.autograd.grad(theirs, (x, weight), upstream, allow_unused=True, retain_graph=True)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)
