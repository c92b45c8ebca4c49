"""A model that is trained: megatron-core's wrappers around a module, its gradient buffers and its optimizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from asearch.errors import TrainingError
from asearch.models.config import ModelConfig
from asearch.training.microbatch import MicroBatch
from asearch.training.model import PolicyModel
from asearch.training.parallel import Coordinates, all_true
from asearch.training.placement import current_position
from asearch.training.settings import TrainerSettings

Loss = Callable[[MicroBatch, Tensor], Any]
"""(micro-batch, what the model returns) -> what megatron's schedules want of a loss."""


class Trainable:
    """Owns weights, gradients and optimizer state of a rank's part of one model."""

    def __init__(self, module: PolicyModel, model_config: ModelConfig, settings: TrainerSettings, place: Coordinates) -> None:
        """Wrap `module`, whose weights are set."""
        self.settings = settings
        self.model_config = model_config
        self.place = place
        self.module = module
        self.position = current_position(module.config)
        reduce = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=settings.shares_optimizer)
        self.ddp = DistributedDataParallel(module.config, reduce, in_precision(module, settings))
        self.optimizer = get_megatron_optimizer(_optimizer_config(settings), [cast("Any", self.ddp)])
        config = module.config
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss
        config.no_sync_func = self.ddp.no_sync

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    def weights(self) -> dict[str, Tensor]:
        """Trained tensors by megatron's name; writing to them writes to the model."""
        return {name: parameter.data for name, parameter in self.module.named_parameters()}

    def inner_optimizers(self) -> list[torch.optim.Optimizer]:
        """torch's optimizers inside megatron's."""
        return [part.optimizer for part in cast("Any", self.optimizer).chained_optimizers]

    def clear_gradient(self) -> None:
        """Forget the gradient at hand."""
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()

    def gradient_norm_here(self) -> float:
        """Norm of the gradient of what this rank holds."""
        buffers = cast("Any", self.ddp.buffers)
        return math.sqrt(sum(float(torch.linalg.vector_norm(buffer.grad_data)) ** 2 for buffer in buffers))

    def apply(self, lr: float) -> float:
        """Take one optimizer step with the gradient at hand; returns its norm, over all ranks, before clipping.

        Raises TrainingError, and changes nothing, if the gradient is not finite.
        """
        norm = self.gradient_norm_here()
        if not all_true(math.isfinite(norm), self.device):
            raise TrainingError("the gradient is not finite; the update was not made")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        done, clipped_norm, _ = cast("tuple[bool, float | None, Any]", self.optimizer.step())
        if not done:
            raise TrainingError("the optimizer refused the step; the update was not made")
        if clipped_norm or self.place.world_size == 1:
            return float(clipped_norm) if clipped_norm else norm
        return float(cast("Any", self.optimizer).get_grad_norm())

    def forward_backward(self, batches: Sequence[MicroBatch], loss: Loss) -> list[Any]:
        """Run the micro-batches forwards and backwards; returns the last thing that `loss` returned for each."""
        return _run(self.ddp, batches, loss, self.device, forward_only=False)

    def forward(self, batches: Sequence[MicroBatch], loss: Loss) -> list[Any]:
        """Run the micro-batches without gradient."""
        return _run(self.ddp, batches, loss, self.device, forward_only=True)


class Frozen:
    """A rank's part of a model that is not trained."""

    def __init__(self, module: PolicyModel, settings: TrainerSettings) -> None:
        """Hold `module`, whose weights are set."""
        self.module = module.requires_grad_(False)
        self._wrapped = in_precision(module, settings)

    def forward(self, batches: Sequence[MicroBatch], loss: Loss) -> list[Any]:
        """Run the micro-batches without gradient; returns the last thing that `loss` returned for each."""
        return _run(self._wrapped, batches, loss, next(self.module.parameters()).device, forward_only=True)


def in_precision(module: PolicyModel, settings: TrainerSettings) -> torch.nn.Module:
    """`module`, or megatron's wrapper of half precision around it."""
    return Float16Module(module.config, module) if settings.precision == "bf16" else module


def _run(
    model: torch.nn.Module, batches: Sequence[MicroBatch], loss: Loss, device: torch.device, forward_only: bool
) -> list[Any]:
    def forward(data: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(data).on(device)
        return model(batch.ids_T, batch.layout, batch.rows_N), partial(loss, batch)

    longest = max(int(batch.ids_T.shape[0]) for batch in batches)
    with torch.set_grad_enabled(not forward_only):
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=longest,
            micro_batch_size=1,
            forward_only=forward_only,
        )


def _optimizer_config(settings: TrainerSettings) -> OptimizerConfig:
    half = settings.precision == "bf16"
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
        use_distributed_optimizer=settings.shares_optimizer,
    )
