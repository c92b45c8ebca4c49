"""Names and shapes of weights: Hugging Face's Qwen2/Qwen3 <-> megatron-core's GPTModel, at tensor parallel size 1."""

from collections.abc import Mapping

import torch
from torch import Tensor

from asearch.errors import InputError
from asearch.models.config import ModelConfig

_PLAIN = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
}
_LAYER = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    # Transformer Engine fuses a norm into the linear layer that follows it.
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")


def to_hf(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face tensors of megatron's `weights`, in the order of `ModelConfig.shapes`.

    Tensors that megatron holds in one piece come as views where they can. Raises InputError for a name that is neither.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        targets = _hf_names(name)
        if targets is None:
            raise InputError(f"the trainer has a weight {name!r} that no Qwen2 or Qwen3 folder has")
        if len(targets) == len(_QKV):
            found.update(zip(targets, _split_qkv(tensor, model), strict=True))
        elif len(targets) == len(_GATED):
            found.update(zip(targets, tensor.chunk(2, 0), strict=True))
        else:
            found[targets[0]] = tensor
    expected = model.shapes()
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise InputError(f"the trainer's weights do not make up a {model.architecture} folder: {', '.join(odd[:3])}")
    return {name: found[name] for name in expected}


@torch.no_grad()
def load_hf(weights: Mapping[str, Tensor], hf: Mapping[str, Tensor], model: ModelConfig) -> None:
    """Copy Hugging Face tensors into megatron's `weights` in place. Raises InputError where a name or shape does not fit."""
    used: set[str] = set()
    for name, tensor in weights.items():
        sources = _hf_names(name)
        if sources is None or any(source not in hf for source in sources):
            raise InputError(f"the model folder has nothing for the trainer's weight {name!r}")
        parts = [hf[source] for source in sources]
        value = _join_qkv(parts, model) if len(parts) == len(_QKV) else torch.cat(parts, 0)
        if value.shape != tensor.shape:
            raise InputError(f"{', '.join(sources)} make a tensor {tuple(value.shape)}; {name} is {tuple(tensor.shape)}")
        tensor.copy_(value)
        used.update(sources)
    left = sorted(hf.keys() - used)
    if left:
        raise InputError(f"the trainer has no place for {', '.join(left[:3])} of the model folder")


def _hf_names(name: str) -> list[str] | None:
    if name in _PLAIN:
        return [_PLAIN[name]]
    head, _, rest = name.removeprefix("decoder.layers.").partition(".")
    if not name.startswith("decoder.layers.") or not head.isdigit():
        return None
    prefix = f"model.layers.{head}."
    for kind in ("weight", "bias"):
        if rest == f"self_attention.linear_qkv.{kind}":
            return [f"{prefix}{part}.{kind}" for part in _QKV]
    if rest == "mlp.linear_fc1.weight":
        return [f"{prefix}{part}.weight" for part in _GATED]
    return [prefix + _LAYER[rest]] if rest in _LAYER else None


def _split_qkv(fused: Tensor, model: ModelConfig) -> list[Tensor]:
    # Megatron's rows are grouped by key head: its query heads, then the key head, then the value head.
    n_shared, d = model.n_heads // model.n_kv_heads, model.head_dim
    grouped = fused.view(model.n_kv_heads, (n_shared + 2) * d, *fused.shape[1:])
    return [part.reshape(-1, *fused.shape[1:]) for part in grouped.split([n_shared * d, d, d], 1)]


def _join_qkv(parts: list[Tensor], model: ModelConfig) -> Tensor:
    grouped = [part.view(model.n_kv_heads, -1, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, 1).reshape(-1, *parts[0].shape[1:])
