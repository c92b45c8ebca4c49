"""The critic of PPO: a value model that is trained beside the policy, with an optimizer of its own."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from asearch.errors import TrainingError
from asearch.learning.objectives.diagnostics import merge
from asearch.learning.objectives.value import value_loss
from asearch.models.config import ModelConfig
from asearch.training.context import whole_tokens
from asearch.training.microbatch import MicroBatch
from asearch.training.parallel import Coordinates, all_true
from asearch.training.settings import TrainerSettings
from asearch.training.totals import over_group
from asearch.training.trainable import Trainable
from asearch.training.value_model import load_value_model

Sums = dict[str, Tensor]
LR_FACTOR = 10.0
"""The critic's rate over the policy's where none is set: 1e-5 and 1e-6 in Search-R1 and verl."""


class Critic(Trainable):
    """A model of the policy's size, begun from the policy's folder, on the ranks of the policy."""

    def __init__(self, model_dir: Path, model: ModelConfig, settings: TrainerSettings, place: Coordinates) -> None:
        """Raises InputError if the folder does not fit."""
        super().__init__(load_value_model(model_dir, model, settings), model, settings, place)
        self.lr_factor = LR_FACTOR if settings.critic_lr is None else settings.critic_lr / settings.lr

    def values(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Values (N,) before the loss tokens of each micro-batch, without gradient."""

        def keep(batch: MicroBatch, values_N1: Tensor, **_unused: Any) -> tuple[Tensor, Tensor, Tensor]:
            values_N = _whole(batch, values_N1)
            return values_N.sum(), torch.tensor(0, dtype=torch.int), values_N

        return cast("list[Tensor]", self.forward(batches, keep))

    def accumulate(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        """Set the gradient of the mean loss over the tokens of `batches` of all replicas. Returns means over tokens by name.

        Raises TrainingError, before any change, if loss or gradient is not finite.
        """
        self.clear_gradient()
        results = cast("list[Sums]", self.forward_backward(batches, self._loss))
        sums = merge(results) if self.place.world_size == 1 else over_group(results, self.place, self.device)
        means = {name: float(value) / batches[0].divisor for name, value in sums.items()}
        is_finite = math.isfinite(means["value_loss"]) and math.isfinite(self.gradient_norm_here())
        if not all_true(is_finite, self.device):
            raise TrainingError("the critic's loss or its gradient is not finite; the update was not made")
        return means

    def _loss(self, batch: MicroBatch, values_N1: Tensor) -> tuple[Tensor, Tensor, Sums]:
        values_N = _whole(batch, values_N1)
        # A dummy has neither: what it says counts nothing, but ranks go through every pass together.
        before_N, returns_N = (values_N.detach() if each is None else each for each in (batch.values_N, batch.returns_N))
        loss_N, clipped_N = value_loss(values_N, before_N, returns_N, self.settings.value_clip)
        loss = (loss_N * batch.weights_N).sum()
        with torch.no_grad():
            sums = {
                "value_loss": loss.detach(),
                "value_clip_fraction": clipped_N.float().sum(),
                "value": before_N.sum(),
                "return": returns_N.sum(),
                "value_error": (before_N - returns_N).abs().sum(),
            }
            if batch.is_dummy:
                sums = {name: torch.zeros_like(value) for name, value in sums.items()}
        speaks = self.place.data_rank == self.place.context_rank == 0
        return loss, torch.tensor(batch.divisor if speaks else 0, dtype=torch.int), sums


def _whole(batch: MicroBatch, values_N1: Tensor) -> Tensor:
    """Values (N,) of all loss tokens, whichever rank of those that share the sequences computed them."""
    values_N = values_N1.squeeze(1).float()
    return values_N if batch.held is None else whole_tokens(values_N, batch.held)
