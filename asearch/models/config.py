"""What the architecture of a Hugging Face folder is: the fields of `config.json` that this project supports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec

from asearch.errors import InputError
from asearch.models.rope import Llama3Scaling, Rope, read_scaling

_FILE = "config.json"
_ARCHITECTURES = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "LlamaForCausalLM": "llama",
}
_QK_NORM = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
SUPPORTED = f"supported are {', '.join(_ARCHITECTURES)} with full attention, default or llama3 RoPE and SiLU"


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """The feed-forward part of a mixture-of-experts layer."""

    n_experts: int
    n_active: int
    """Experts that each token is sent to."""
    intermediate_size: int
    normalised: bool
    """Whether the weights of a token's experts are divided by their sum."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A Qwen2, Qwen3 or Llama decoder; sizes are counts of elements."""

    architecture: str
    """A name of `SUPPORTED`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float
    rope_scaling: Llama3Scaling | None = None
    rms_norm_eps: float
    tied: bool
    """Whether the output layer is the embedding matrix."""
    qkv_bias: bool
    o_bias: bool = False
    qk_norm: bool
    experts: Experts | None = None
    """None in dense models; else every layer has experts."""
    eos_ids: tuple[int, ...] = ()
    """Ends of generation named by `config.json` and `generation_config.json`."""

    @classmethod
    def load(cls, folder: str | Path) -> ModelConfig:
        """Reads `config.json` (and `generation_config.json` if there is one). Raises `InputError`."""
        path = Path(folder) / _FILE
        raw = _read_object(path)
        generation = Path(folder) / "generation_config.json"
        eos = _ids(raw.get("eos_token_id"))
        if generation.is_file():
            eos = tuple(dict.fromkeys(eos + _ids(_read_object(generation).get("eos_token_id"))))
        return cls.from_hf(raw, str(path), eos)

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str = _FILE, eos_ids: tuple[int, ...] = ()) -> ModelConfig:
        """Builds the configuration from the object in `config.json`. Raises `InputError` for what is not supported."""
        architecture = _refuse_unsupported(raw, where)
        is_qwen2 = architecture == "Qwen2ForCausalLM"
        bias = bool(raw.get("attention_bias", False))
        hidden_size, n_heads = _size(raw, "hidden_size", where), _size(raw, "num_attention_heads", where)
        config = cls(
            architecture=architecture,
            vocab_size=_size(raw, "vocab_size", where),
            hidden_size=hidden_size,
            intermediate_size=_size(raw, "intermediate_size", where),
            n_layers=_size(raw, "num_hidden_layers", where),
            n_heads=n_heads,
            n_kv_heads=_size(raw, "num_key_value_heads", where, n_heads),
            head_dim=_size(raw, "head_dim", where, hidden_size // n_heads),
            max_positions=_size(raw, "max_position_embeddings", where, 32768),
            rope_theta=_rope_theta(raw, where),
            rope_scaling=_rope_scaling(raw, where),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=is_qwen2 or bias,
            o_bias=not is_qwen2 and bias,
            qk_norm=architecture in _QK_NORM,
            experts=_experts(raw, where) if architecture == "Qwen3MoeForCausalLM" else None,
            eos_ids=eos_ids,
        )
        if config.n_heads % config.n_kv_heads or config.head_dim % 2:
            raise InputError(f"{where}: num_attention_heads must be a multiple of num_key_value_heads, head_dim even")
        return config

    @property
    def rope(self) -> Rope:
        """What rotates queries and keys."""
        return Rope(self.rope_theta, self.rope_scaling)

    def to_hf(self) -> dict[str, Any]:
        """The object to write as `config.json`, readable by `transformers` and by SGLang."""
        raw: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": _ARCHITECTURES[self.architecture],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "use_sliding_window": False,
            "torch_dtype": "float32",
        }
        if self.architecture != "Qwen2ForCausalLM":
            raw["attention_bias"] = self.qkv_bias
        if self.rope_scaling is not None:
            raw["rope_scaling"] = self.rope_scaling.to_hf()
        if self.experts is not None:
            raw |= {
                "num_experts": self.experts.n_experts,
                "num_experts_per_tok": self.experts.n_active,
                "moe_intermediate_size": self.experts.intermediate_size,
                "norm_topk_prob": self.experts.normalised,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        if self.eos_ids:
            raw["eos_token_id"] = self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids)
        return raw

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the folder, in `transformers`' naming."""
        h, d = self.hidden_size, self.head_dim
        q, kv = self.n_heads * d, self.n_kv_heads * d
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, h)}
        for i in range(self.n_layers):
            at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            shapes[f"model.layers.{i}.input_layernorm.weight"] = (h,)
            shapes[f"model.layers.{i}.post_attention_layernorm.weight"] = (h,)
            shapes |= {at + "q_proj.weight": (q, h), at + "k_proj.weight": (kv, h), at + "v_proj.weight": (kv, h)}
            shapes[at + "o_proj.weight"] = (h, q)
            experts = self.experts
            if experts is not None:
                shapes[mlp + "gate.weight"] = (experts.n_experts, h)
            f = self.intermediate_size if experts is None else experts.intermediate_size
            for part in [mlp] if experts is None else [f"{mlp}experts.{j}." for j in range(experts.n_experts)]:
                shapes |= {part + "down_proj.weight": (h, f)}
                shapes |= {part + "gate_proj.weight": (f, h), part + "up_proj.weight": (f, h)}
            if self.qkv_bias:
                shapes |= {at + "q_proj.bias": (q,), at + "k_proj.bias": (kv,), at + "v_proj.bias": (kv,)}
            if self.o_bias:
                shapes[at + "o_proj.bias"] = (h,)
            if self.qk_norm:
                shapes |= {at + "q_norm.weight": (d,), at + "k_norm.weight": (d,)}
        shapes["model.norm.weight"] = (h,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, h)
        return shapes


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; a model folder needs it") from error
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not a JSON object: {error}") from error


def _refuse_unsupported(raw: dict[str, Any], where: str) -> str:
    names: list[str] = raw.get("architectures") or []
    architecture = next((name for name in names if name in _ARCHITECTURES), None)
    if architecture is None:
        raise InputError(f"{where}: architecture {names or raw.get('model_type')!r}; {SUPPORTED}")
    reason = None
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or []):
        reason = "sliding-window attention"
    if raw.get("hidden_act", "silu") != "silu":
        reason = f"hidden_act {raw.get('hidden_act')!r}"
    for key in ("rope_scaling", "rope_parameters"):
        rope = cast(dict[str, Any], raw.get(key) or {})
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            reason = "partial rotary embeddings"
    if raw.get("mlp_bias"):
        reason = "a bias in the feed-forward layers"
    if architecture == "Qwen3MoeForCausalLM" and (raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1):
        reason = "a mixture of layers with and without experts"
    if raw.get("quantization_config"):
        reason = "quantised weights"
    if reason is not None:
        raise InputError(f"{where}: {reason} is not supported; {SUPPORTED}")
    return architecture


def _rope_theta(raw: dict[str, Any], where: str) -> float:
    theta = raw.get("rope_theta", cast(dict[str, Any], raw.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    if not isinstance(theta, int | float) or theta <= 0:
        raise InputError(f"{where}: rope_theta must be a positive number, not {theta!r}")
    return float(theta)


def _rope_scaling(raw: dict[str, Any], where: str) -> Llama3Scaling | None:
    found = [read_scaling(cast(dict[str, Any], raw.get(key) or {}), where) for key in ("rope_scaling", "rope_parameters")]
    return found[0] or found[1]


def _experts(raw: dict[str, Any], where: str) -> Experts:
    experts = Experts(
        n_experts=_size(raw, "num_experts", where, 128),
        n_active=_size(raw, "num_experts_per_tok", where, 8),
        intermediate_size=_size(raw, "moe_intermediate_size", where, 768),
        normalised=bool(raw.get("norm_topk_prob", False)),
    )
    if experts.n_active > experts.n_experts:
        raise InputError(f"{where}: num_experts_per_tok must be at most num_experts")
    return experts


def _size(raw: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {key} must be a positive integer, not {value!r}")
    return value


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    if isinstance(value, list):
        return tuple(int(cast(int, item)) for item in cast(list[object], value))
    return ()
