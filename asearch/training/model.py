"""megatron-core's GPTModel in the shape of a Hugging Face folder of Qwen2, Qwen3 or Llama architecture."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, set_tensor_model_parallel_attributes
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

from asearch.errors import ConfigError, InputError
from asearch.models.config import ModelConfig
from asearch.models.weights import FolderWeights
from asearch.training.attention import PackedAttention, PackedLayout
from asearch.training.divisibility import check_parallel
from asearch.training.experts import expert_options, expert_spec
from asearch.training.layers import GatedMLP, RankNorm
from asearch.training.mapping import Placement, global_name, is_divided, load_hf
from asearch.training.placement import current_position
from asearch.training.settings import TrainerSettings

Model = TypeVar("Model", bound="PolicyModel")


class PolicyModel(GPTModel):
    """A GPTModel that computes logits only where a loss or a log-probability is taken."""

    _selected_N: Tensor | None = None

    def forward(self, ids_T: Tensor, layout: PackedLayout, rows_N: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logits (N, V) that follow the tokens at `rows_N` of the packed `ids_T`; V is this rank's share of the vocabulary.

        Before the last pipeline stage, what the next stage goes on with.
        """
        self._selected_N = rows_N
        unused = cast("Tensor", None)
        out = super().forward(ids_T.unsqueeze(0), unused, unused, packed_seq_params=layout)
        return out.squeeze(0) if self.post_process else out

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.post_process and self._selected_N is not None:
            if self.config.sequence_parallel:
                # The rows lie on any of the ranks; backward sums what each has of the gradient, so the layer need not.
                hidden_states = gather_from_sequence_parallel_region(hidden_states)
            hidden_states = hidden_states.index_select(0, self._selected_N)
        return super()._postprocess(hidden_states, *args, **kwargs)


def padded_vocab_size(model: ModelConfig, tensor_size: int) -> int:
    """Rows of the embedding over all tensor-parallel ranks: the vocabulary, rounded up so that they share it equally."""
    return -(-model.vocab_size // tensor_size) * tensor_size


def transformer_config(model: ModelConfig, settings: TrainerSettings) -> TransformerConfig:
    """Megatron's configuration for `model`. Raises InputError for what its layers cannot express."""
    if model.o_bias:
        raise InputError("a bias on the attention's output projection is not supported by the trainer")
    gpu, fused = torch.cuda.is_available(), uses_transformer_engine(settings)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=model.n_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.n_heads,
        num_query_groups=model.n_kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        qk_layernorm=model.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=model.qkv_bias,
        gated_linear_unit=True,
        activation_func=silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=not gpu,
        perform_initialization=False,
        bf16=settings.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # noqa: S106
        calculate_per_token_loss=True,
        persist_layer_norm=fused,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        apply_rope_fusion=fused,
        tensor_model_parallel_size=settings.tensor_parallel,
        pipeline_model_parallel_size=settings.pipeline_parallel,
        context_parallel_size=settings.context_parallel,
        sequence_parallel=settings.tensor_parallel > 1,
        **_recompute(settings),
        **expert_options(model, settings),
    )


def uses_transformer_engine(settings: TrainerSettings) -> bool:
    """Whether the layers are Transformer Engine's. Raises ConfigError where they are asked for and cannot be."""
    there = torch.cuda.is_available() and HAVE_TE
    if settings.transformer_engine and not there:
        raise ConfigError(
            "trainer.transformer_engine is true, but there is no CUDA device, or transformer_engine is not installed"
        )
    return there and settings.transformer_engine is not False


def _recompute(settings: TrainerSettings) -> dict[str, Any]:
    if settings.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {"recompute_granularity": "selective"} if settings.recompute == "selective" else {}


def loaded(model_dir: Path, model: ModelConfig, settings: TrainerSettings) -> PolicyModel:
    """The part of the model of a folder that this rank holds. Raises InputError if the folder does not fit."""
    built = build_model(model, settings)
    weights = {name: parameter.data for name, parameter in built.named_parameters()}
    load_hf(weights, FolderWeights(model_dir, model), model, current_position(built.config).placement)
    return built


def build_model(model: ModelConfig, settings: TrainerSettings) -> PolicyModel:
    """The part of the model that this rank holds, with weights not yet set."""
    return build(PolicyModel, model, settings)


def build(kind: type[Model], model: ModelConfig, settings: TrainerSettings) -> Model:
    """As `build_model`, for a model with another head."""
    check_parallel(model, settings)
    config = transformer_config(model, settings)
    built = kind(
        config=config,
        transformer_layer_spec=_layer_spec(model, config, settings),
        vocab_size=padded_vocab_size(model, settings.tensor_parallel),
        max_sequence_length=model.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=model.tied,
        # PackedAttention rotates queries and keys itself, where their positions are aligned.
        position_embedding_type="rope" if uses_transformer_engine(settings) else "none",
        rotary_base=cast("int", model.rope_theta),
        **(_rope_scaling(model) if uses_transformer_engine(settings) else {}),
    )
    if built.post_process and config.sequence_parallel and hasattr(built, "output_layer"):
        # Its input is gathered before rows are selected.
        built.output_layer.sequence_parallel = False
        built.output_layer.disable_grad_reduce = True
    _mark_shards(built, model)
    return built.cuda() if torch.cuda.is_available() else built


def _mark_shards(built: PolicyModel, model: ModelConfig) -> None:
    """Say of which weights ranks hold shards. Megatron does so where it initialises them, which we do not let it do.

    The norm of the gradient counts what is not marked on one tensor-parallel rank only.
    """
    for name, parameter in built.named_parameters():
        whole = global_name(name, model, Placement())
        if is_divided(whole) and not getattr(parameter, "tensor_model_parallel", False):
            by_column = whole.endswith(("linear_proj.weight", "linear_fc2.weight"))
            for attribute in ("tensor_model_parallel", "partition_dim", "partition_stride"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)
            set_tensor_model_parallel_attributes(parameter, True, int(by_column), 1)


def _rope_scaling(model: ModelConfig) -> dict[str, Any]:
    """Megatron's options for the rotation that Transformer Engine's attention takes; it knows one shape of scaling alone."""
    scaling = model.rope_scaling
    if scaling is None:
        return {}
    if (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings) != (1.0, 4.0, 8192):
        raise InputError(
            "with Transformer Engine the trainer supports llama3 RoPE only with the factors 1 and 4 and 8192 original positions"
        )
    return {"rope_scaling": True, "rope_scaling_factor": scaling.factor}


def _layer_spec(model: ModelConfig, config: TransformerConfig, settings: TrainerSettings) -> ModuleSpec:
    if uses_transformer_engine(settings):
        n_experts = model.experts.n_experts if model.experts else None
        return get_gpt_layer_with_transformer_engine_spec(num_experts=n_experts, qk_layernorm=model.qk_norm)
    layer = copy.deepcopy(get_gpt_layer_local_spec(qk_layernorm=model.qk_norm, normalization="RMSNorm"))
    parts = cast("Any", layer.submodules)
    parts.input_layernorm = parts.pre_mlp_layernorm = RankNorm
    if model.experts is not None:
        parts.mlp = expert_spec(model)
    else:
        parts.mlp.module = GatedMLP
        parts.mlp.params = {"ffn_hidden_size": model.intermediate_size}
    attention = parts.self_attention.submodules
    attention.core_attention = partial(PackedAttention, rope=model.rope)
    if model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RankNorm
    n_layers = get_num_layers_to_build(config)
    return cast("ModuleSpec", TransformerBlockSubmodules([layer] * n_layers, cast("Any", RankNorm)))
