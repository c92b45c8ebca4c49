"""Mixture-of-experts layers of megatron-core: every rank holds all experts of its layers and carries them out in turn."""

from typing import Any

from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.spec_utils import ModuleSpec

from asearch.errors import ConfigError
from asearch.models.config import ModelConfig
from asearch.training.settings import TrainerSettings


def expert_options(model: ModelConfig, settings: TrainerSettings) -> dict[str, Any]:
    """Fields of megatron's configuration for the experts of `model`; none for a dense one. Raises ConfigError.

    There is no auxiliary loss: what balances the experts is what they were trained with before.
    """
    experts = model.experts
    if experts is None:
        return {}
    if settings.tensor_parallel > 1:
        raise ConfigError("trainer.tensor_parallel must be 1 for a model with experts; spread it by pipeline and data parallel")
    if not hasattr(moe_utils, "te_general_gemm"):
        # Megatron 0.16.1 asks for this name also where Transformer Engine is missing, and then does without.
        setattr(moe_utils, "te_general_gemm", None)  # noqa: B010
    return {
        "num_moe_experts": experts.n_experts,
        "moe_router_topk": experts.n_active,
        "moe_ffn_hidden_size": experts.intermediate_size,
        # The softmax over the chosen experts alone is that over all of them divided by the sum of the chosen ones.
        "moe_router_pre_softmax": not experts.normalised,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_aux_loss_coeff": 0.0,
    }


def expert_spec(model: ModelConfig) -> ModuleSpec:
    """The feed-forward part of a layer with experts, of the CPU layer spec."""
    n_experts = model.experts.n_experts if model.experts else None
    return get_moe_module_spec(use_te=False, num_experts=n_experts, moe_grouped_gemm=False)
