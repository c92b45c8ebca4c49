"""The policy that a rank trains: one object from `LoadModel` to the end of the rank."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from asearch.errors import InputError
from asearch.learning.advantages import GAE
from asearch.learning.logprobs import token_logprobs
from asearch.learning.objectives import LossTokens, merge, objectives, policy_diagnostics, policy_loss
from asearch.models.config import ModelConfig
from asearch.training.context import Split, whole_tokens
from asearch.training.critic import Critic
from asearch.training.microbatch import MicroBatch
from asearch.training.model import loaded, padded_vocab_size
from asearch.training.parallel import start_parallel, tensor_group
from asearch.training.settings import TrainerSettings
from asearch.training.totals import over_group
from asearch.training.trainable import Frozen, Trainable
from asearch.training.vocab_parallel import share_of, shared_logprobs

Sums = dict[str, Tensor]


class Learner(Trainable):
    """The policy of a rank, with the models that its objective needs beside it."""

    def __init__(self, model_dir: Path, settings: TrainerSettings, seed: int) -> None:
        """Load the folder `model_dir`. Raises InputError for a folder that is not supported, ConfigError for settings."""
        self.model_dir = model_dir
        self.objective = objectives.get(settings.objective)
        self.algorithm = settings.algorithm
        model_config = ModelConfig.load(model_dir)
        place = start_parallel(settings, seed)
        super().__init__(loaded(model_dir, model_config, settings), model_config, settings, place)
        measured = self.objective.uses_advantages and self.algorithm.kl_coefficient > 0
        self.reference = Frozen(loaded(model_dir, model_config, settings), settings) if measured else None
        """The policy as the run began with it, whatever checkpoint is restored: the folder is that of the run."""
        self.critic = Critic(model_dir, model_config, settings, place) if self.algorithm.advantage == GAE else None
        rows = padded_vocab_size(model_config, place.tensor_size) // place.tensor_size
        self._vocabulary = share_of(model_config.vocab_size, rows, place.tensor_rank, tensor_group())

    @property
    def split(self) -> Split:
        """How the tokens of a micro-batch are divided over ranks."""
        return Split(self.place.tensor_size, self.place.context_rank, self.place.context_size)

    @property
    def n_parameters(self) -> int:
        """Trained numbers of the model, of all ranks together."""
        return sum(math.prod(shape) for shape in self.model_config.shapes().values())

    def check_ids(self, largest_id: int) -> None:
        """Raises InputError for a token id outside the vocabulary."""
        if largest_id >= self.model_config.vocab_size:
            raise InputError(f"token id {largest_id} is outside the model's vocabulary of {self.model_config.vocab_size}")

    def logprobs(self, batches: Sequence[MicroBatch], model: Frozen | None = None) -> list[Tensor]:
        """Log-probabilities (N,) of the loss tokens of each micro-batch, without gradient, under the current weights or `model`.

        Nothing before the last pipeline stage.
        """

        def keep(batch: MicroBatch, logits_NV: Tensor, **_unused: Any) -> tuple[Tensor, Tensor, Tensor]:
            logprobs_N, _ = self._token_logprobs(batch, logits_NV, with_entropy=False)
            return logprobs_N.sum(), torch.tensor(0, dtype=torch.int), logprobs_N

        return cast("list[Tensor]", (model or self).forward(batches, keep))

    def accumulate(self, batches: Sequence[MicroBatch], seen: list[Tensor] | None = None) -> Sums:
        """Set the gradient of the objective over `batches`, divided as they say. Returns sums over tokens by name.

        The sums are of the batches of all replicas; names that end in `_max` are the largest. `seen` gets the
        log-probabilities (N,) of the loss tokens of each micro-batch, as the loss computes them, on the last pipeline stage.
        """
        self.clear_gradient()
        results = cast("list[Sums]", self.forward_backward(batches, partial(self._loss, seen)))
        return merge(results) if self.place.world_size == 1 else over_group(results, self.place, self.device)

    def _token_logprobs(self, batch: MicroBatch, logits_NV: Tensor, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (N,) of all loss tokens, whichever rank computes the logits that say them."""
        if self.place.tensor_size == 1:
            found = token_logprobs(logits_NV, batch.held_targets, with_entropy)
        else:
            found = shared_logprobs(logits_NV, batch.held_targets, self._vocabulary, with_entropy)
        if batch.held is None:
            return found
        return whole_tokens(found[0], batch.held), whole_tokens(found[1], batch.held)

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
            reference_N=proximal_N if batch.is_dummy and self.reference is not None else batch.reference_N,
            entropy_N=entropy_N,
        )
        result = policy_loss(self.objective, tokens, self.algorithm)
        loss = (result.loss_N * batch.weights_N).sum()
        entropy_N = entropy_N.detach()
        sums = {"loss": loss.detach(), "logprob": logprobs_N.detach().sum(), "entropy": entropy_N.sum(), **result.sums}
        if self.objective.uses_advantages:
            sums |= policy_diagnostics(tokens, entropy_N)
        if batch.is_dummy:
            sums = {name: torch.zeros_like(value) for name, value in sums.items()}
        # One rank speaks for all that train the same batch.
        speaks = self.place.data_rank == self.place.context_rank == 0
        return loss, torch.tensor(batch.divisor if speaks else 0, dtype=torch.int), sums
