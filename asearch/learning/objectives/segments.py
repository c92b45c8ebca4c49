"""Means and sums of token values over the segments that they belong to."""

import torch
from torch import Tensor


def segment_sum(values_N: Tensor, segment_N: Tensor) -> Tensor:
    """The sum of `values_N` over each token's segment, at every token (N,)."""
    return _sums(values_N, segment_N)[0]


def segment_mean(values_N: Tensor, segment_N: Tensor) -> Tensor:
    """The mean of `values_N` over each token's segment, at every token (N,)."""
    sums_N, counts_N = _sums(values_N, segment_N)
    return sums_N / counts_N


def _sums(values_N: Tensor, segment_N: Tensor) -> tuple[Tensor, Tensor]:
    _, place_N, counts_S = torch.unique(segment_N, return_inverse=True, return_counts=True)
    # Not `index_add`: on a GPU its order of addition changes, and ranks that share a segment must find the same to the last bit.
    sorted_N = values_N[place_N.argsort(stable=True)]
    sums_S = torch.segment_reduce(sorted_N, "sum", lengths=counts_S, unsafe=True)
    return sums_S[place_N], counts_S[place_N]
