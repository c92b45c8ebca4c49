"""A model with its optimizer in megatron-core's wrappers: one object from `LoadModel` to the end of the rank."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from asearch.errors import ConfigError, InputError, TrainingError
from asearch.learning.advantages import GAE
from asearch.learning.logprobs import token_logprobs
from asearch.learning.objectives import LossTokens, merge, objectives, policy_diagnostics, policy_loss
from asearch.models.config import ModelConfig
from asearch.models.weights import FolderWeights
from asearch.training.context import Split, whole_tokens
from asearch.training.mapping import load_hf
from asearch.training.microbatch import MicroBatch
from asearch.training.model import build_model, padded_vocab_size
from asearch.training.parallel import all_true, start_parallel, tensor_group
from asearch.training.placement import current_position
from asearch.training.settings import TrainerSettings
from asearch.training.totals import over_group
from asearch.training.vocab_parallel import share_of, shared_logprobs

Sums = dict[str, Tensor]


class Learner:
    """Owns weights, gradients and optimizer state of a rank."""

    def __init__(self, model_dir: Path, settings: TrainerSettings, seed: int) -> None:
        """Load the folder `model_dir`. Raises InputError for a folder that is not supported, ConfigError for settings."""
        self.settings = settings
        self.model_dir = model_dir
        self.model_config = ModelConfig.load(model_dir)
        self.objective = objectives.get(settings.objective)
        self.algorithm = settings.algorithm
        if self.algorithm.advantage == GAE or self.algorithm.kl_coefficient:
            raise ConfigError("the trainer holds no critic and no reference model: set another advantage, and kl_coefficient = 0")
        self.place = start_parallel(settings, seed)
        self.module = build_model(self.model_config, settings)
        self.position = current_position(self.module.config)
        load_hf(self.weights(), FolderWeights(model_dir, self.model_config), self.model_config, self.position.placement)
        half = settings.precision == "bf16"
        wrapped = Float16Module(self.module.config, self.module) if half else self.module
        reduce = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=settings.shares_optimizer)
        self.ddp = DistributedDataParallel(self.module.config, reduce, wrapped)
        self.optimizer = get_megatron_optimizer(_optimizer_config(settings), [cast("Any", self.ddp)])
        config = self.module.config
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss
        config.no_sync_func = self.ddp.no_sync
        self._run = get_forward_backward_func()
        rows = padded_vocab_size(self.model_config, self.place.tensor_size) // self.place.tensor_size
        self._vocabulary = share_of(self.model_config.vocab_size, rows, self.place.tensor_rank, tensor_group())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def split(self) -> Split:
        """How the tokens of a micro-batch are divided over ranks."""
        return Split(self.place.tensor_size, self.place.context_rank, self.place.context_size)

    def weights(self) -> dict[str, Tensor]:
        """Trained tensors by megatron's name; writing to them writes to the model."""
        return {name: parameter.data for name, parameter in self.module.named_parameters()}

    @property
    def n_parameters(self) -> int:
        """Trained numbers of the model, of all ranks together."""
        return sum(math.prod(shape) for shape in self.model_config.shapes().values())

    def inner_optimizers(self) -> list[torch.optim.Optimizer]:
        """torch's optimizers inside megatron's."""
        return [part.optimizer for part in cast("Any", self.optimizer).chained_optimizers]

    def check_ids(self, largest_id: int) -> None:
        """Raises InputError for a token id outside the vocabulary."""
        if largest_id >= self.model_config.vocab_size:
            raise InputError(f"token id {largest_id} is outside the model's vocabulary of {self.model_config.vocab_size}")

    def logprobs(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Log-probabilities (N,) of the loss tokens of each micro-batch under the current weights, without gradient.

        Nothing before the last pipeline stage.
        """

        def keep(batch: MicroBatch, logits_NV: Tensor, **_unused: Any) -> tuple[Tensor, Tensor, Tensor]:
            logprobs_N, _ = self._token_logprobs(batch, logits_NV, with_entropy=False)
            return logprobs_N.sum(), torch.tensor(0, dtype=torch.int), logprobs_N

        return cast("list[Tensor]", self._pass(batches, keep, forward_only=True))

    def accumulate(self, batches: Sequence[MicroBatch], seen: list[Tensor] | None = None) -> Sums:
        """Set the gradient of the objective over `batches`, divided as they say. Returns sums over tokens by name.

        The sums are of the batches of all replicas; names that end in `_max` are the largest. `seen` gets the
        log-probabilities (N,) of the loss tokens of each micro-batch, as the loss computes them, on the last pipeline stage.
        """
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        results = cast("list[Sums]", self._pass(batches, partial(self._loss, seen), forward_only=False))
        return merge(results) if self.place.world_size == 1 else over_group(results, self.place, self.device)

    def apply(self, lr: float) -> float:
        """Take one optimizer step with the gradient at hand; returns its norm, over all ranks, before clipping.

        Raises TrainingError, and changes nothing, if the gradient is not finite.
        """
        buffers = cast("Any", self.ddp.buffers)
        norm = math.sqrt(sum(float(torch.linalg.vector_norm(buffer.grad_data)) ** 2 for buffer in buffers))
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

    def _pass(self, batches: Sequence[MicroBatch], loss: Any, forward_only: bool) -> list[Any]:
        def forward(data: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
            batch = next(data).on(self.device)
            logits_NV = model(batch.ids_T, batch.layout, batch.rows_N)
            return logits_NV, partial(loss, batch)

        longest = max(int(batch.ids_T.shape[0]) for batch in batches)
        with torch.set_grad_enabled(not forward_only):
            return self._run(
                forward_step_func=forward,
                data_iterator=iter(batches),
                model=[self.ddp],
                num_microbatches=len(batches),
                seq_length=longest,
                micro_batch_size=1,
                forward_only=forward_only,
            )

    def _token_logprobs(self, batch: MicroBatch, logits_NV: Tensor, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (N,) of all loss tokens, whichever rank computes the logits that say them."""
        if self.place.tensor_size == 1:
            found = token_logprobs(logits_NV, batch.held_targets, with_entropy)
        else:
            found = shared_logprobs(logits_NV, batch.held_targets, self._vocabulary, with_entropy)
        if batch.held is None:
            return found
        return whole_tokens(found[0], batch.held), whole_tokens(found[1], batch.held).detach()

    def _loss(self, seen: list[Tensor] | None, batch: MicroBatch, logits_NV: Tensor) -> tuple[Tensor, Tensor, Sums]:
        logprobs_N, entropy_N = self._token_logprobs(batch, logits_NV)
        if seen is not None and not batch.is_dummy:
            seen.append(logprobs_N.detach())
        # With one optimizer step per batch the proximal policy is the policy itself (tested against the recomputed one).
        proximal_N = logprobs_N.detach() if batch.proximal_N is None else batch.proximal_N
        tokens = LossTokens(
            logprobs_N=logprobs_N,
            behaviour_N=batch.behaviour_N,
            proximal_N=proximal_N,
            advantages_N=batch.advantages_N,
            segment_N=batch.segment_N,
            episode_N=batch.episode_N,
            group_N=batch.group_N,
        )
        result = policy_loss(self.objective, tokens, self.algorithm)
        loss = (result.loss_N * batch.weights_N).sum()
        sums = {"loss": loss.detach(), "logprob": logprobs_N.detach().sum(), "entropy": entropy_N.sum(), **result.sums}
        if self.objective.uses_advantages:
            sums |= policy_diagnostics(tokens, entropy_N)
        if batch.is_dummy:
            sums = {name: torch.zeros_like(value) for name, value in sums.items()}
        # One rank speaks for all that train the same batch.
        speaks = self.place.data_rank == self.place.context_rank == 0
        return loss, torch.tensor(batch.divisor if speaks else 0, dtype=torch.int), sums


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
