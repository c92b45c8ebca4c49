"""A Qwen2, Qwen3 and Llama decoder for inference in fp32, with little Python per step; made for a CPU, it runs on any device.

The architecture is that of the Qwen2 (arXiv 2407.10671), Qwen3 (arXiv 2505.09388) and Llama (arXiv 2407.21783) reports: pre-norm
decoder with RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864), grouped-query attention (arXiv 2305.13245) and
SwiGLU (arXiv 2002.05202). Shapes: N tokens of a step, H hidden, Q query heads, K key heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from asearch.models.attention import OneTokenPlan, Plan, Span, SpansPlan
from asearch.models.config import Experts, ModelConfig
from asearch.models.fused import FusedExpert, FusedLayer, FusedWeights, fuse
from asearch.models.kv_cache import KvCache


class Decoder:
    """Runs prompts and decoding steps over the rows of a `KvCache`. Not thread-safe; keeps no state of its own."""

    def __init__(self, config: ModelConfig, weights: FusedWeights) -> None:
        self.config = config
        self.weights = weights
        self._q_width = config.n_heads * config.head_dim
        self._qk_width = self._q_width + config.n_kv_heads * config.head_dim
        self.device = weights.embed_VH.device
        self._eps_11 = torch.full((1, 1), config.rms_norm_eps, device=self.device)
        self._qk_heads = config.n_heads + config.n_kv_heads

    @classmethod
    def from_tensors(
        cls, config: ModelConfig, tensors: Mapping[str, Tensor], n_positions: int, device: str | torch.device = "cpu"
    ) -> Decoder:
        """A decoder for sequences of at most `n_positions` tokens from tensors named as by `transformers`."""
        return cls(config, fuse({name: tensor.to(device) for name, tensor in tensors.items()}, config, n_positions))

    @torch.inference_mode()
    def decode(self, cache: KvCache, rows: Sequence[int], ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feeds one token per row at its position; returns logits [N, V] in fp32. Rows are distinct."""
        rows_N, positions_N = self._ids(rows), self._ids(positions)
        plan = OneTokenPlan(cache, self.config.n_kv_heads, rows, [position + 1 for position in positions])
        x_NH = self.weights.embed_VH.index_select(0, self._ids(ids))
        return self._forward(cache, x_NH, rows_N, positions_N, plan, None)

    @torch.inference_mode()
    def prefill(self, cache: KvCache, parts: Sequence[tuple[int, int, Sequence[int]]]) -> Tensor:
        """Feeds parts of prompts (row, position of its first token, ids); earlier positions are in the cache.

        Returns the logits [len(parts), V] that follow the last token of each part. Rows are distinct.
        """
        spans: list[Span] = []
        ids: list[int] = []
        for row, start, part in parts:
            spans.append(Span(row, start, len(ids), len(part)))
            ids.extend(part)
        rows_N = torch.cat([torch.full((span.n_tokens,), span.row) for span in spans]).to(self.device)
        positions_N = torch.cat([torch.arange(span.start, span.start + span.n_tokens) for span in spans]).to(self.device)
        plan = SpansPlan(cache, self.config.n_kv_heads, spans)
        x_NH = self.weights.embed_VH.index_select(0, self._ids(ids))
        return self._forward(cache, x_NH, rows_N, positions_N, plan, spans)

    def _ids(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)

    def _forward(
        self, cache: KvCache, x_NH: Tensor, rows_N: Tensor, positions_N: Tensor, plan: Plan, spans: list[Span] | None
    ) -> Tensor:
        config, eps = self.config, self._eps_11
        rotation_N1C = self.weights.rotation_LC.index_select(0, positions_N).unsqueeze(1)
        entries_LN = cache.entries(rows_N, positions_N)
        for i, layer in enumerate(self.weights.layers):
            q_NQD = self._project(layer, _normed(x_NH, eps), rotation_N1C, cache, entries_LN[i])
            if spans is not None and i == config.n_layers - 1:
                # Only the last token of each part goes on: its keys and values are written, no one reads the others.
                last_N = self._ids([span.first + span.n_tokens - 1 for span in spans])
                x_NH, q_NQD = x_NH.index_select(0, last_N), q_NQD.index_select(0, last_N)
                lengths = [span.start + span.n_tokens for span in spans]
                plan = OneTokenPlan(cache, config.n_kv_heads, [span.row for span in spans], lengths)
            x_NH = torch.addmm(x_NH, plan.attend(i, q_NQD), layer.out_QH)
            if layer.out_bias_H is not None:
                x_NH += layer.out_bias_H
            x_NH = self._fed_forward(layer, x_NH)
        return _normed(x_NH, eps) @ self.weights.head_HV

    def _fed_forward(self, layer: FusedLayer, x_NH: Tensor) -> Tensor:
        """The tokens with what the feed-forward part of the layer adds to them."""
        normed_NH, experts = _normed(x_NH, self._eps_11), self.config.experts
        if layer.router_HE is None or experts is None:
            (expert,) = layer.experts
            return torch.addmm(x_NH, _gated(expert, normed_NH), expert.down_FH)
        weights_NE = _routed(normed_NH @ layer.router_HE, experts)
        for expert, weights_N in zip(layer.experts, weights_NE.unbind(1), strict=True):
            (tokens,) = weights_N.nonzero(as_tuple=True)
            if len(tokens):
                out = _gated(expert, normed_NH.index_select(0, tokens)) @ expert.down_FH
                x_NH.index_add_(0, tokens, out.mul_(weights_N[tokens].unsqueeze(1)))
        return x_NH

    def _project(self, layer: FusedLayer, x_NH: Tensor, rotation_N1C: Tensor, cache: KvCache, entries_N: Tensor) -> Tensor:
        """Writes keys and values of the step into the cache; returns the rotated queries [N, Q, D]."""
        bias = layer.qkv_bias_W
        qkv_NW = x_NH @ layer.qkv_HW if bias is None else torch.addmm(bias, x_NH, layer.qkv_HW)
        head_dim = self.config.head_dim
        qk = qkv_NW[:, : self._qk_width].unflatten(1, (self._qk_heads, head_dim))
        if layer.qk_norm_ND is not None:
            scale = _inverse_rms(qk.square().view(-1, head_dim), self._eps_11)
            qk.mul_(scale.view(-1, self._qk_heads, 1)).mul_(layer.qk_norm_ND)
        torch.view_as_complex(qk.unflatten(2, (head_dim // 2, 2))).mul_(rotation_N1C)
        cache.flat_XW.index_copy_(0, entries_N, qkv_NW[:, self._q_width :])
        return qk[:, : self.config.n_heads]


def _routed(logits_NE: Tensor, experts: Experts) -> Tensor:
    """How much each expert has a part in each token; 0 for those that it is not sent to."""
    largest = logits_NE.softmax(-1).topk(experts.n_active)
    values = largest.values / largest.values.sum(-1, keepdim=True) if experts.normalised else largest.values
    return torch.zeros_like(logits_NE).scatter_(1, largest.indices, values)


def _gated(expert: FusedExpert, normed_NH: Tensor) -> Tensor:
    gate, up = (normed_NH @ expert.gate_up_HF).chunk(2, -1)
    return silu(gate).mul_(up)


def _normed(x_NH: Tensor, eps_11: Tensor) -> Tensor:
    """RMSNorm without its weight, which is folded into the product that follows."""
    return _inverse_rms(x_NH.square(), eps_11).mul(x_NH)


def _inverse_rms(squares_NX: Tensor, eps_11: Tensor) -> Tensor:
    # The mean as a product with a vector: one call instead of a reduction and an addition, a third of the time when
    # a step has few tokens.
    width = squares_NX.shape[1]
    return torch.addmm(eps_11, squares_NX, squares_NX.new_full((width, 1), 1.0 / width)).rsqrt_()
