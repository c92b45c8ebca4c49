"""The policy's architecture with one number a token in the place of logits."""

from pathlib import Path
from typing import Any, cast

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from asearch.models.config import ModelConfig
from asearch.models.weights import FolderWeights
from asearch.training.fragments import HEAD_BIAS, HEAD_WEIGHT
from asearch.training.mapping import OUTPUT, hf_names, load_hf
from asearch.training.model import PolicyModel, build
from asearch.training.placement import current_position
from asearch.training.settings import TrainerSettings


class ValueModel(PolicyModel):
    """Returns values (N, 1) of the states before the loss tokens: what is expected of the rest of the episode.

    Before the last pipeline stage, what the next stage goes on with.
    """

    def __init__(self, **given: Any) -> None:
        given["share_embeddings_and_output_weights"] = False
        super().__init__(**given)
        if not self.post_process:
            return
        del self.output_layer
        self.value_head = torch.nn.Linear(self.config.hidden_size, 1, dtype=self.config.params_dtype)

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.post_process:
            return super()._postprocess(hidden_states, *args, **kwargs)
        if self.config.sequence_parallel:
            # Every rank computes all values and so the whole gradient, of which each takes the part of its own tokens.
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        selected = hidden_states.index_select(0, cast("Tensor", self._selected_N))
        return self.value_head(selected).transpose(0, 1).contiguous()


def load_value_model(model_dir: Path, model: ModelConfig, settings: TrainerSettings) -> ValueModel:
    """A value model that begins from the weights of the policy's folder and says 0 everywhere.

    Raises InputError if the folder does not fit.
    """
    built = build(ValueModel, model, settings)
    trunk = {name: parameter.data for name, parameter in built.named_parameters() if name not in (HEAD_WEIGHT, HEAD_BIAS)}
    folder = FolderWeights(model_dir, model)
    # Policies that do not tie their output layer to the embedding have one in the folder that is of no use here.
    used = {name: folder[name] for name in folder if name not in (hf_names(OUTPUT) or [])}
    load_hf(trunk, used, model, current_position(built.config).placement)
    if built.post_process:
        with torch.no_grad():
            built.value_head.weight.zero_()
            built.value_head.bias.zero_()
    return built
