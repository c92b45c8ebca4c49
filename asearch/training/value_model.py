"""The policy's architecture with one number a token in the place of logits."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from asearch.models.config import ModelConfig
from asearch.models.weights import FolderWeights
from asearch.training.mapping import OUTPUT, hf_names, load_hf
from asearch.training.model import PolicyModel, build
from asearch.training.settings import TrainerSettings


class ValueModel(PolicyModel):
    """Returns values (N, 1) of the states before the loss tokens: what is expected of the rest of the episode."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        del self.output_layer
        self.share_embeddings_and_output_weights = False
        self.value_head = torch.nn.Linear(self.config.hidden_size, 1, dtype=self.config.params_dtype)

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        selected = hidden_states.index_select(0, cast("Tensor", self._selected_N))
        return self.value_head(selected).transpose(0, 1).contiguous()


def load_value_model(model_dir: Path, model: ModelConfig, settings: TrainerSettings) -> ValueModel:
    """A value model that begins from the weights of the policy's folder and says 0 everywhere.

    Raises InputError if the folder does not fit.
    """
    built = build(ValueModel, model, settings)
    head = {"value_head.weight", "value_head.bias"}
    trunk = {name: parameter.data for name, parameter in built.named_parameters() if name not in head}
    folder = FolderWeights(model_dir, model)
    # Policies that do not tie their output layer to the embedding have one in the folder that is of no use here.
    used = {name: folder[name] for name in folder if name not in (hf_names(OUTPUT) or [])}
    load_hf(trunk, used, model)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(built.value_head, name).zero_()
    return built
