"""The critic of PPO: a value model that is trained beside the policy, with an optimizer of its own."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from asearch.errors import CheckpointError, TrainingError
from asearch.learning.objectives.diagnostics import merge
from asearch.learning.objectives.value import value_loss
from asearch.models.config import ModelConfig
from asearch.training.fragments import WEIGHT
from asearch.training.microbatch import MicroBatch
from asearch.training.optimizer_state import MAIN, trained
from asearch.training.parallel import Coordinates
from asearch.training.settings import TrainerSettings
from asearch.training.trainable import Trainable
from asearch.training.value_model import load_value_model

Sums = dict[str, Tensor]
LR_FACTOR = 10.0
"""The critic's rate over the policy's where none is set: 1e-5 and 1e-6 in Search-R1 and verl."""


class Critic(Trainable):
    """A model of the policy's size, begun from the policy's folder. On one rank."""

    def __init__(self, model_dir: Path, model: ModelConfig, settings: TrainerSettings, place: Coordinates) -> None:
        """Raises InputError if the folder does not fit."""
        super().__init__(load_value_model(model_dir, model, settings), model, settings, place)
        self.lr_factor = LR_FACTOR if settings.critic_lr is None else settings.critic_lr / settings.lr

    def values(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Values (N,) before the loss tokens of each micro-batch, without gradient."""

        def keep(batch: MicroBatch, values_N1: Tensor, **_unused: Any) -> tuple[Tensor, Tensor, Tensor]:
            del batch
            return values_N1.sum(), torch.tensor(0, dtype=torch.int), values_N1.squeeze(1).float()

        return cast("list[Tensor]", self.forward(batches, keep))

    def accumulate(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        """Set the gradient of the mean loss over the tokens of `batches`. Returns means over tokens by name.

        Raises TrainingError, before any change, if loss or gradient is not finite.
        """
        self.clear_gradient()
        sums = merge(cast("list[Sums]", self.forward_backward(batches, self._loss)))
        means = {name: float(value) / batches[0].divisor for name, value in sums.items()}
        if not (math.isfinite(means["value_loss"]) and math.isfinite(self.gradient_norm_here())):
            raise TrainingError("the critic's loss or its gradient is not finite; the update was not made")
        return means

    def _loss(self, batch: MicroBatch, values_N1: Tensor) -> tuple[Tensor, Tensor, Sums]:
        values_N = values_N1.squeeze(1).float()
        before_N, returns_N = cast("Tensor", batch.values_N), cast("Tensor", batch.returns_N)
        loss_N, clipped_N = value_loss(values_N, before_N, returns_N, self.settings.value_clip)
        loss = loss_N.sum()
        with torch.no_grad():
            sums = {
                "value_loss": loss.detach(),
                "value_clip_fraction": clipped_N.float().sum(),
                "value": before_N.sum(),
                "return": returns_N.sum(),
                "value_error": (before_N - returns_N).abs().sum(),
            }
        return loss, torch.tensor(batch.divisor, dtype=torch.int), sums

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state, by names of their own; the tensors are the live ones."""
        held: dict[str, Tensor] = {}
        for each in trained(self):
            held[f"{WEIGHT}/{each.name}"] = each.parameter
            held |= {f"{field}/{each.name}": value.detach() for field, value in each.fields().items()}
        return held

    def check(self, held: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError if `held` is not the state of a critic like this."""
        shapes = {f"{WEIGHT}/{each.name}": each.parameter.shape for each in trained(self)}
        found = {key: tensor.shape for key, tensor in held.items() if key.startswith(f"{WEIGHT}/")}
        wrong = sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))
        if wrong:
            raise CheckpointError(f"the checkpoint's critic is not of this model: {', '.join(wrong[:3])} differ")

    @torch.no_grad()
    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Set what `state` gave and `check` accepted."""
        by_weight: dict[str, dict[str, Tensor]] = {}
        for key, value in held.items():
            field, _, name = key.partition("/")
            by_weight.setdefault(name, {})[field] = value
        for each in trained(self):
            fields = by_weight[each.name]
            each.parameter.copy_(fields.pop(WEIGHT))
            each.set_fields(fields.pop(MAIN, None), fields)
