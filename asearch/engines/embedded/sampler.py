"""Choice of the next tokens of a batch.

Every draw takes one uniform number that is a hash of the request's seed and the token's index, so a request's tokens
depend neither on its neighbours in the batch nor on interruptions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asearch.engines.embedded.request import Request, Sampling

_U64 = np.uint64


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per pair, a multiple of 2^-32, by the SplitMix64 finaliser (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.array(seeds, dtype=_U64) + np.array(indices, dtype=_U64) * _U64(0x9E3779B97F4A7C15)
        for _ in range(2):
            z += _U64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
            z ^= z >> _U64(31)
    return (z >> _U64(32)).astype(np.float64) / 2.0**32


@torch.inference_mode()
def sample(logits_BV: Tensor, requests: Sequence[Request]) -> tuple[list[int], list[float]]:
    """Next token of every request and its log-probability under the model itself.

    Log-probabilities are raw (before temperature and filters), natural, computed in fp32. A request whose logits are
    not finite gets a NaN.
    """
    raw_BV = torch.log_softmax(logits_BV, -1)
    samplings = [request.sampling for request in requests]
    if all(sampling.temperature == 0.0 and not sampling.min_new_tokens for sampling in samplings):
        ids_B1 = raw_BV.argmax(-1, keepdim=True)
    else:
        ids_B1 = _draw(raw_BV, requests, samplings)
    return ids_B1.flatten().tolist(), raw_BV.gather(1, ids_B1).flatten().tolist()


def _draw(raw_BV: Tensor, requests: Sequence[Request], samplings: list[Sampling]) -> Tensor:
    u = uniforms([sampling.seed for sampling in samplings], [len(request.output) for request in requests])
    u_B1 = torch.from_numpy(u).to(raw_BV.device).unsqueeze(1)
    if all(sampling.plain for sampling in samplings):
        return _invert(raw_BV.exp(), u_B1)
    scaled_BV = _without_stops(raw_BV, requests)
    greedy_B1 = scaled_BV.argmax(-1, keepdim=True)
    temperatures = _column([sampling.temperature or 1.0 for sampling in samplings], raw_BV.device)
    probs_BV = torch.softmax(scaled_BV / temperatures, -1)
    if any(sampling.top_p < 1.0 or sampling.top_k for sampling in samplings):
        drawn_B1 = _filtered(probs_BV, u_B1, samplings)
    else:
        drawn_B1 = _invert(probs_BV, u_B1)
    is_greedy = _column([sampling.temperature == 0.0 for sampling in samplings], raw_BV.device)
    return torch.where(is_greedy, greedy_B1, drawn_B1)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).unsqueeze(1)


def _invert(probs_BV: Tensor, u_B1: Tensor) -> Tensor:
    # Sums in fp64 and u below 1 - 2^-32 keep u * total under the total, so a token of probability 0 is never chosen.
    sums_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums_BV, u_B1 * sums_BV[:, -1:], right=True).clamp_(max=probs_BV.shape[1] - 1)


def _filtered(probs_BV: Tensor, u_B1: Tensor, samplings: list[Sampling]) -> Tensor:
    n_vocab = probs_BV.shape[1]
    sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
    top_p_B1 = _column([sampling.top_p for sampling in samplings], probs_BV.device)
    top_k_B1 = _column([sampling.top_k or n_vocab for sampling in samplings], probs_BV.device)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    outside = (before_BV > top_p_B1) | (torch.arange(n_vocab, device=probs_BV.device) >= top_k_B1)
    outside[:, 0] = False
    return order_BV.gather(1, _invert(sorted_BV.masked_fill(outside, 0.0), u_B1))


def _without_stops(raw_BV: Tensor, requests: Sequence[Request]) -> Tensor:
    early = [i for i, r in enumerate(requests) if len(r.output) < r.sampling.min_new_tokens and r.sampling.stop_ids]
    if not early:
        return raw_BV
    masked = raw_BV.clone()
    for i in early:
        masked[i, list(requests[i].sampling.stop_ids)] = -torch.inf
    return masked
