"""One policy step: a `TrainStep` in, an update (or a reason for none) and its metrics out."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asearch.errors import TrainingError
from asearch.learning.normalisation import normalisations
from asearch.learning.objectives import is_maximum
from asearch.training.batch import Batch, TrainingSequence, compose, masked_by_decile
from asearch.training.learner import Learner
from asearch.training.microbatch import MicroBatch, micro_batches, order_of
from asearch.training.recorded import Logprobs, trained_episodes
from asearch.training.schedule import learning_rate
from schemas.local import StepDone, TrainStep


def train_step(learner: Learner, command: TrainStep) -> StepDone:
    """Update `learner` from policy step `command.step` to the next.

    A batch without loss tokens, or whose advantages are all 0, is skipped. Raises TrainingError with the weights and the
    optimizer's state as they were.
    """
    started_ns = time.perf_counter_ns()
    batch = compose(command, learner.objective, learner.settings)
    learner.check_ids(max((int(s.ids_T.max()) for s in batch.sequences), default=0))
    metrics = _batch_metrics(command, batch)
    signal = any(batch.advantages[s.episode] != 0.0 for s in batch.sequences)
    known: Logprobs = []
    if signal:
        updated, known = _update(learner, batch, command)
        metrics |= updated
    elapsed_ns = time.perf_counter_ns() - started_ns
    n_forwarded = sum(len(s.ids_T) for s in batch.sequences)
    metrics["tokens_per_s"] = n_forwarded / (elapsed_ns * 1e-9) if signal else 0.0
    return StepDone(
        step=command.step,
        skipped=not signal,
        n_tokens_trained=batch.n_trained if signal else 0,
        n_tokens_masked_stale=sum(batch.masked),
        staleness=dict(sorted(batch.staleness.items())) if signal else {},
        metrics=metrics,
        elapsed_ns=elapsed_ns,
        episodes=trained_episodes(command, batch, known),
    )


def _update(learner: Learner, batch: Batch, command: TrainStep) -> tuple[dict[str, float], Logprobs]:
    """Metrics of the update, and the log-probabilities under the policy it began from of the sequences that it learned from."""
    settings = learner.settings
    parts = _minibatches(batch, settings.minibatches)
    lr = learning_rate(settings, command.step)
    if len(parts) == 1:
        seen: list[Tensor] | None = [] if command.max_recorded_tokens else None
        metrics = _optimize(learner, _packed(learner, batch, parts[0], None), lr, seen)
        return metrics, _by_sequence(learner, parts[0], seen) if seen else []
    before = _snapshot(learner)
    try:
        proximal = [_proximal(learner, batch, part) for part in parts]
        done = [_optimize(learner, _packed(learner, batch, part, known), lr) for part, known in zip(parts, proximal, strict=True)]
    except TrainingError:
        _restore(learner, before)
        raise
    means = {name: (max if is_maximum(name) else statistics.fmean)([metrics[name] for metrics in done]) for name in done[0]}
    return means, [pair for part, known in zip(parts, proximal, strict=True) for pair in zip(part, known, strict=True)]


def _minibatches(batch: Batch, n: int) -> list[list[TrainingSequence]]:
    groups = sorted({s.group for s in batch.sequences})
    n = min(n, len(groups))
    part_of = {group: place * n // len(groups) for place, group in enumerate(groups)}
    parts: list[list[TrainingSequence]] = [[] for _ in range(n)]
    for sequence in batch.sequences:
        parts[part_of[sequence.group]].append(sequence)
    return [part for part in parts if any(batch.advantages[s.episode] != 0.0 for s in part)]


def _packed(
    learner: Learner, batch: Batch, sequences: Sequence[TrainingSequence], proximal: Sequence[Tensor] | None
) -> list[MicroBatch]:
    settings = learner.settings
    algorithm = learner.algorithm
    weigh = normalisations.get(algorithm.normalisation)
    weights = weigh([len(s.trained_N) for s in sequences], [s.episode for s in sequences], algorithm.constant_length)
    return micro_batches(sequences, batch.advantages, weights, settings.token_budget, proximal)


def _proximal(learner: Learner, batch: Batch, sequences: Sequence[TrainingSequence]) -> list[Tensor]:
    known = learner.logprobs(_packed(learner, batch, sequences, None))
    return [logprobs_N for _, logprobs_N in _by_sequence(learner, sequences, known)]


def _by_sequence(learner: Learner, sequences: Sequence[TrainingSequence], by_micro_batch: Sequence[Tensor]) -> Logprobs:
    order = order_of(sequences, learner.settings.token_budget)
    parts = torch.cat(list(by_micro_batch)).split([len(sequences[i].trained_N) for i in order])
    by_sequence = dict(zip(order, parts, strict=True))
    return [(sequence, by_sequence[i]) for i, sequence in enumerate(sequences)]


def _optimize(learner: Learner, batches: list[MicroBatch], lr: float, seen: list[Tensor] | None = None) -> dict[str, float]:
    sums = {name: float(value) for name, value in learner.accumulate(batches, seen).items()}
    broken = sorted(name for name in ("loss", "logprob") if not math.isfinite(sums[name]))
    if broken:
        raise TrainingError(f"the sum of {' and '.join(broken)} over the batch is not finite; the update was not made")
    n_tokens = sum(int(b.targets_N.shape[0]) for b in batches)
    divisors = {"loss": batches[0].divisor}
    metrics = {name: value if is_maximum(name) else value / divisors.get(name, n_tokens) for name, value in sums.items()}
    metrics["grad_norm"] = learner.apply(lr)
    metrics["lr"] = lr
    metrics["n_micro_batches"] = len(batches)
    return metrics


def _batch_metrics(command: TrainStep, batch: Batch) -> dict[str, float]:
    rewards = [episode.reward for group in command.groups for episode in group.episodes]
    metrics: dict[str, float] = {
        "n_groups": len(command.groups),
        "n_episodes": len(rewards),
        "n_segments": sum(len(episode.segments) for group in command.groups for episode in group.episodes),
        "n_tokens_forwarded": sum(len(s.ids_T) for s in batch.sequences),
        "reward_mean": statistics.fmean(rewards) if rewards else 0.0,
        "reward_std": statistics.pstdev(rewards) if rewards else 0.0,
        "advantage_abs_mean": statistics.fmean(map(abs, batch.advantages)) if batch.advantages else 0.0,
        "dead_lineage_tokens": batch.n_dead_lineage,
    }
    return metrics | {f"masked_stale_decile_{i}": n for i, n in enumerate(masked_by_decile(batch))}


def _snapshot(learner: Learner) -> tuple[list[Tensor], list[dict[Any, dict[str, Any]]]]:
    weights = [tensor.clone() for tensor in learner.weights().values()]
    states: list[dict[Any, dict[str, Any]]] = []
    for inner in learner.inner_optimizers():
        states.append({p: {k: v.clone() for k, v in entry.items()} for p, entry in inner.state.items()})
    return weights, states


def _restore(learner: Learner, before: tuple[list[Tensor], list[dict[Any, dict[str, Any]]]]) -> None:
    weights, states = before
    for tensor, value in zip(learner.weights().values(), weights, strict=True):
        tensor.copy_(value)
    for inner, state in zip(learner.inner_optimizers(), states, strict=True):
        inner.state.clear()
        inner.state.update(state)
    learner.optimizer.reload_model_params()
