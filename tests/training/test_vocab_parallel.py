"""Log-probabilities over a shared vocabulary against the plain ones; the ranks are threads that meet in every reduction."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from asearch.learning.logprobs import ROWS, token_logprobs
from asearch.training import vocab_parallel
from asearch.training.vocab_parallel import share_of, shared_logprobs


class Meeting:
    """A group of threads; stands for a process group."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._barrier = Barrier(n, timeout=30)
        self._brought: list[Tensor] = []

    def reduce(self, values: Tensor, operation: Any) -> None:
        self._brought.append(values.clone())
        self._barrier.wait()
        stacked = torch.stack(self._brought)
        self._barrier.wait()
        if operation == ReduceOp.MAX:
            values.copy_(stacked.amax(0))
        else:
            values.copy_(stacked.sum(0))
        if self._barrier.wait() == 0:
            self._brought.clear()
        self._barrier.wait()


@pytest.mark.parametrize(("vocab_size", "n_ranks"), [(64, 2), (67, 2), (10, 4), (5, 4)])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_shared_is_plain(monkeypatch: pytest.MonkeyPatch, vocab_size: int, n_ranks: int, with_entropy: bool) -> None:
    def all_reduce(values: Tensor, operation: Any = ReduceOp.SUM, group: Any = None) -> None:
        cast("Meeting", group).reduce(values, operation)

    monkeypatch.setattr(vocab_parallel.distributed, "all_reduce", all_reduce)
    generator = torch.Generator().manual_seed(0)
    n = ROWS + 7
    logits = 30 * torch.randn(n, vocab_size, generator=generator)
    # An id that cannot come has a logit of -inf, and what it would add is nothing.
    logits[3, 1] = -torch.inf
    targets = torch.randint(2, vocab_size, (n,), generator=generator)
    upstream = torch.randn(n, generator=generator)
    to_entropy = torch.randn(n, generator=generator)

    def gradient_of(values: tuple[Tensor, Tensor], parameter: Tensor) -> Tensor:
        pairs = [(values[0], upstream), (values[1], to_entropy)][: 1 + with_entropy]
        return torch.autograd.grad([value for value, _ in pairs], parameter, [grad for _, grad in pairs])[0]

    whole = logits.clone().requires_grad_()
    logprobs, entropy = token_logprobs(whole * 1.0, targets, with_entropy)
    gradient = gradient_of((logprobs, entropy), whole)

    n_rows = -(-vocab_size // n_ranks)
    # What stands in the rows of the padding must not matter.
    padded = torch.cat((logits, 1e4 * torch.ones(n, n_rows * n_ranks - vocab_size)), 1)
    meeting = Meeting(n_ranks)

    def rank(number: int) -> tuple[Tensor, Tensor, Tensor]:
        share = share_of(vocab_size, n_rows, number, cast("ProcessGroup", meeting))
        own = padded[:, number * n_rows : (number + 1) * n_rows].clone().requires_grad_()
        found, spread = shared_logprobs(own * 1.0, targets, share, with_entropy)
        return found.detach(), spread.detach(), gradient_of((found, spread), own)

    run: Callable[[int], tuple[Tensor, Tensor, Tensor]] = rank
    with ThreadPoolExecutor(n_ranks) as threads:
        results = list(threads.map(run, range(n_ranks)))
    for found, spread, _ in results:
        torch.testing.assert_close(found, logprobs, rtol=1e-6, atol=1e-5)
        if with_entropy:
            torch.testing.assert_close(spread, entropy, rtol=1e-5, atol=1e-5)
        else:
            assert not spread.any()
    together = torch.cat([gradient for _, _, gradient in results], 1)
    torch.testing.assert_close(together[:, :vocab_size], gradient, rtol=1e-5, atol=1e-6)
    assert not together[:, vocab_size:].any()
