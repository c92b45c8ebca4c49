"""Where this process stands among the ranks of a parallel trainer, as megatron's process groups say it."""

from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import distributed

from asearch.training.mapping import Placement, Position


def current_position(config: TransformerConfig) -> Position:
    """The position of this process; megatron's groups must have been initialised."""
    placement = Placement(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        first_layer=get_transformer_layer_offset(config),
    )
    return Position(
        rank=distributed.get_rank(),
        n_ranks=distributed.get_world_size(),
        placement=placement,
        replica=parallel_state.get_data_parallel_rank(with_context_parallel=True),
        n_replicas=parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )
