"""Weights of a Hugging Face folder <-> the parts of megatron-core's GPTModel that the ranks of a parallel trainer hold.

A weight has a *global name*: megatron's name of it in a model on one rank, with Transformer Engine's fused norms under the
names of the local layer spec. A rank holds one of `tensor_size` shards of it, or all of it where it is not divided. All
here are functions of names, tensors and a `Placement`: they need no process group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from asearch.errors import InputError
from asearch.models.config import ModelConfig

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
_PLAIN = {
    EMBEDDING: "model.embed_tokens.weight",
    OUTPUT: "lm_head.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
}
_LAYER = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.router.weight": "mlp.gate.weight",
}
_FUSED_NORMS = {
    # Transformer Engine fuses a norm into the linear layer that follows it.
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_LAYERS = "decoder.layers."
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("gate_proj", "up_proj")
_EXPERTS = "mlp.experts.local_experts."


@dataclass(frozen=True, slots=True)
class Placement:
    """Which part of a model a rank holds."""

    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    first_layer: int = 0
    """Number of layers on the pipeline stages before this one."""


@dataclass(frozen=True, slots=True)
class Position:
    """A rank: its number among all ranks, what it holds, and which of the replicas that hold the same it is."""

    rank: int
    n_ranks: int
    placement: Placement
    replica: int
    """Rank among those of data and context parallelism, which hold the same weights."""
    n_replicas: int


def global_name(name: str, model: ModelConfig, placement: Placement) -> str:
    """The global name of a rank's weight. A tied model's copy of the embedding on the last stage is the embedding."""
    if name == OUTPUT and model.tied:
        return EMBEDDING
    head, _, rest = name.removeprefix(_LAYERS).partition(".")
    if not name.startswith(_LAYERS) or not head.isdigit():
        return name
    return f"{_LAYERS}{int(head) + placement.first_layer}.{_FUSED_NORMS.get(rest, rest)}"


def hf_names(name: str) -> list[str] | None:
    """Hugging Face's names of the tensors that the weight of a global name is made of; None if there are none."""
    if name in _PLAIN:
        return [_PLAIN[name]]
    head, _, rest = name.removeprefix(_LAYERS).partition(".")
    if not name.startswith(_LAYERS) or not head.isdigit():
        return None
    prefix = f"model.layers.{head}."
    for kind in ("weight", "bias"):
        if rest == f"self_attention.linear_qkv.{kind}":
            return [f"{prefix}{part}.{kind}" for part in _QKV]
    expert, _, inner = rest.removeprefix(_EXPERTS).partition(".")
    is_expert = rest.startswith(_EXPERTS) and expert.isdigit()
    mlp, inner = (f"mlp.experts.{expert}.", inner) if is_expert else ("mlp.", rest.removeprefix("mlp."))
    if inner == "linear_fc1.weight":
        return [f"{prefix}{mlp}{part}.weight" for part in _GATED]
    if inner == "linear_fc2.weight":
        return [f"{prefix}{mlp}down_proj.weight"]
    return [prefix + _LAYER[rest]] if rest in _LAYER else None


def is_divided(name: str) -> bool:
    """Whether tensor-parallel ranks hold shards of the weight of a global name, or each all of it."""
    return name.endswith((".word_embeddings.weight", OUTPUT)) or ".linear_" in name


def shard_of(name: str, parts: Sequence[Tensor], model: ModelConfig, rank: int, size: int) -> Tensor:
    """Shard `rank` of `size` of the weight of a global name, from its Hugging Face tensors in the order of `hf_names`.

    A vocabulary that does not divide by `size` is padded with zeros at its end. May be a view.
    """
    if name in (EMBEDDING, OUTPUT):
        rows = -(-model.vocab_size // size)
        padded = pad(parts[0], (0, 0, 0, rows * size - parts[0].shape[0])) if rows * size > parts[0].shape[0] else parts[0]
        return padded[rank * rows : (rank + 1) * rows]
    if len(parts) == len(_QKV):
        return _join_qkv(parts, model).chunk(size, 0)[rank]
    if len(parts) == len(_GATED):
        # Each rank holds its share of the gates above its share of the ups.
        return torch.cat([part.chunk(size, 0)[rank] for part in parts], 0)
    return parts[0].chunk(size, 1)[rank] if is_divided(name) else parts[0]


def merged(name: str, shards: Sequence[Tensor], model: ModelConfig) -> list[Tensor]:
    """The Hugging Face tensors, in the order of `hf_names`, of the weight of a global name from all of its shards.

    The inverse of `shard_of`. Tensors that megatron holds in one piece come as views where they can.
    """
    names = hf_names(name) or []
    if name in (EMBEDDING, OUTPUT):
        return [_whole(shards, 0)[: model.vocab_size]]
    if len(names) == len(_QKV):
        return _split_qkv(_whole(shards, 0), model)
    if len(names) == len(_GATED):
        halves = [shard.chunk(2, 0) for shard in shards]
        return [_whole([half[i] for half in halves], 0) for i in range(2)]
    return [_whole(shards, 1) if is_divided(name) else shards[0]]


def to_hf(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face tensors of all of megatron's `weights` on one rank, in the order of `ModelConfig.shapes`.

    Raises InputError for a name that is neither's.
    """
    found: dict[str, Tensor] = {}
    for local, tensor in weights.items():
        name = global_name(local, model, Placement())
        targets = known_hf_names(name)
        found.update(zip(targets, merged(name, [tensor], model), strict=True))
    expected = model.shapes()
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise InputError(f"the trainer's weights do not make up a {model.architecture} folder: {', '.join(odd[:3])}")
    return {name: found[name] for name in expected}


def known_hf_names(name: str) -> list[str]:
    """As `hf_names`. Raises InputError where there are none."""
    targets = hf_names(name)
    if targets is None:
        raise InputError(f"the trainer has a weight {name!r} that no supported model folder has")
    return targets


@torch.no_grad()
def load_hf(
    weights: Mapping[str, Tensor],
    hf: Mapping[str, Tensor],
    model: ModelConfig,
    placement: Placement = Placement(),
) -> None:
    """Copy of Hugging Face's tensors what this rank holds into megatron's `weights`, in place.

    `hf` may read its tensors when they are asked for. Raises InputError where a name or shape does not fit.
    """
    used: set[str] = set()
    for local, tensor in weights.items():
        name = global_name(local, model, placement)
        sources = hf_names(name)
        if sources is None or any(source not in hf for source in sources):
            raise InputError(f"the model folder has nothing for the trainer's weight {name!r}")
        value = shard_of(name, [hf[source] for source in sources], model, placement.tensor_rank, placement.tensor_size)
        if value.shape != tensor.shape:
            raise InputError(f"{', '.join(sources)} make a tensor {tuple(value.shape)}; {name} is {tuple(tensor.shape)}")
        tensor.copy_(value)
        used.update(sources)
    left = sorted(hf.keys() - used)
    if left and placement.pipeline_size == 1:
        raise InputError(f"the trainer has no place for {', '.join(left[:3])} of the model folder")


def _whole(shards: Sequence[Tensor], dim: int) -> Tensor:
    return shards[0] if len(shards) == 1 else torch.cat(list(shards), dim)


def _split_qkv(fused: Tensor, model: ModelConfig) -> list[Tensor]:
    # Megatron's rows are grouped by key head: its query heads, then the key head, then the value head.
    n_shared, d = model.n_heads // model.n_kv_heads, model.head_dim
    grouped = fused.view(model.n_kv_heads, (n_shared + 2) * d, *fused.shape[1:])
    return [part.reshape(-1, *fused.shape[1:]) for part in grouped.split([n_shared * d, d, d], 1)]


def _join_qkv(parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
    grouped = [part.view(model.n_kv_heads, -1, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, 1).reshape(-1, *parts[0].shape[1:])
