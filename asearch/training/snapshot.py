"""Weights and optimizer state before an update of several steps, to go back to if one of them fails."""

from typing import Any, cast

import torch
from torch import Tensor

from asearch.training.optimizer_state import STEP
from asearch.training.trainable import Trainable


class Snapshot:
    """A copy of what training changes of a model on this rank, in memory."""

    def __init__(self, model: Trainable) -> None:
        self._weights = [tensor.clone() for tensor in model.weights().values()]
        self._main = [tensor.detach().clone() for tensor in _optimized(model)]
        self._counts = [group.get(STEP) for group in _groups(model)]
        """Updates by group, of optimizers that count them there and not by weight."""
        self._states: list[dict[Any, dict[str, Any]]] = []
        for inner in model.inner_optimizers():
            self._states.append({p: {k: v.clone() for k, v in entry.items()} for p, entry in inner.state.items()})

    @torch.no_grad()
    def restore(self, model: Trainable) -> None:
        """Put everything back."""
        for tensor, value in zip(model.weights().values(), self._weights, strict=True):
            tensor.copy_(value)
        for tensor, value in zip(_optimized(model), self._main, strict=True):
            tensor.copy_(value)
        for inner, state in zip(model.inner_optimizers(), self._states, strict=True):
            inner.state.clear()
            inner.state.update(state)
        for group, count in zip(_groups(model), self._counts, strict=True):
            group.pop(STEP, None)
            if count is not None:
                group[STEP] = count


def _optimized(model: Trainable) -> list[Tensor]:
    """The optimizer's own weights that are not the model's or parts of them: copies of a higher precision, under bf16."""
    models = {tensor.untyped_storage().data_ptr() for tensor in model.weights().values()}
    all_of_them = (parameter for group in _groups(model) for parameter in cast("list[Tensor]", group["params"]))
    return [parameter for parameter in all_of_them if parameter.untyped_storage().data_ptr() not in models]


def _groups(model: Trainable) -> list[dict[str, Any]]:
    return [group for inner in model.inner_optimizers() for group in inner.param_groups]
