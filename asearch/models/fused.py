"""Weights rearranged for inference: fewer and larger products per layer, and rotary pairs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from asearch.errors import InputError
from asearch.models.config import ModelConfig
from asearch.models.rotary import frequencies


@dataclass(frozen=True, slots=True)
class FusedExpert:
    """A gated feed-forward block."""

    gate_up_HF: Tensor
    """[H, 2F]; the norm's weight before it is folded in."""
    down_FH: Tensor


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer. H hidden, Q = query width, K = key width, F = feed-forward width, D = head width, N = heads."""

    qkv_HW: Tensor
    """[H, Q + 2K]: queries, keys, values; the input norm's weight is folded in."""
    qkv_bias_W: Tensor | None
    qk_norm_ND: Tensor | None
    """[query heads + key heads, D], or None where the architecture has no such norm."""
    out_QH: Tensor
    out_bias_H: Tensor | None
    experts: tuple[FusedExpert, ...]
    """One in a dense model."""
    router_HE: Tensor | None
    """[H, experts], with the second norm's weight folded in; None in a dense model."""


@dataclass(frozen=True, slots=True)
class FusedWeights:
    """All that a forward pass reads, in fp32 on one device."""

    embed_VH: Tensor
    layers: tuple[FusedLayer, ...]
    head_HV: Tensor
    """[H, V]; the last norm's weight is folded in."""
    rotation_LC: Tensor
    """[positions, D / 2] complex64: the rotation of each pair at each position."""


def fuse(tensors: Mapping[str, Tensor], config: ModelConfig, n_positions: int) -> FusedWeights:
    """Rearranges tensors named as by `transformers` (their exact set is the caller's duty; see `check_shapes`).

    RMSNorm weights are multiplied into the following product, and the head dimension is reordered from the halves
    convention (i, i + D/2) to adjacent pairs, which leaves every attention score as it is. Raises `InputError` if any
    value is not finite: such weights would poison the cache of every request.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"weights are not finite: {name} holds NaN or infinity")
    full = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    embed = full["model.embed_tokens.weight"].contiguous()
    head = embed if config.tied else full["lm_head.weight"]
    return FusedWeights(
        embed_VH=embed,
        layers=tuple(_layer(full, config, i) for i in range(config.n_layers)),
        head_HV=(head * full["model.norm.weight"]).t().contiguous(),
        rotation_LC=_rotation(config, n_positions).to(embed.device),
    )


def _layer(full: Mapping[str, Tensor], config: ModelConfig, i: int) -> FusedLayer:
    at, mlp, layer = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp.", f"model.layers.{i}."
    d = config.head_dim
    pairs = torch.arange(d, device=full["model.embed_tokens.weight"].device).view(2, d // 2).t().reshape(-1)

    def paired(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (-1, d))[:, pairs].flatten(0, 1)

    rows = [paired(full[at + "q_proj.weight"]), paired(full[at + "k_proj.weight"]), full[at + "v_proj.weight"]]
    bias = qk_norm = None
    if config.qkv_bias:
        bias = torch.cat([paired(full[at + "q_proj.bias"]), paired(full[at + "k_proj.bias"]), full[at + "v_proj.bias"]])
    if config.qk_norm:
        q_norm, k_norm = full[at + "q_norm.weight"][pairs], full[at + "k_norm.weight"][pairs]
        qk_norm = torch.cat([q_norm.expand(config.n_heads, d), k_norm.expand(config.n_kv_heads, d)]).contiguous()
    norm = full[layer + "post_attention_layernorm.weight"]
    n_experts = 0 if config.experts is None else config.experts.n_experts
    parts = [f"{mlp}experts.{j}." for j in range(n_experts)] or [mlp]
    return FusedLayer(
        qkv_HW=(torch.cat(rows) * full[layer + "input_layernorm.weight"]).t().contiguous(),
        qkv_bias_W=bias,
        qk_norm_ND=qk_norm,
        out_QH=full[at + "o_proj.weight"].t().contiguous(),
        out_bias_H=full[at + "o_proj.bias"] if config.o_bias else None,
        experts=tuple(_expert(full, part, norm) for part in parts),
        router_HE=(full[mlp + "gate.weight"] * norm).t().contiguous() if n_experts else None,
    )


def _expert(full: Mapping[str, Tensor], part: str, norm: Tensor) -> FusedExpert:
    gate_up = torch.cat([full[part + "gate_proj.weight"], full[part + "up_proj.weight"]])
    return FusedExpert((gate_up * norm).t().contiguous(), full[part + "down_proj.weight"].t().contiguous())


def _rotation(config: ModelConfig, n_positions: int) -> Tensor:
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), frequencies(config.rope, config.head_dim))
    return torch.complex(angles.cos(), angles.sin())
