"""One policy step: a `TrainStep` in, an update (or a reason for none) and its metrics out."""

import math
import statistics
import time

import torch
from torch import Tensor

from asearch.errors import TrainingError
from asearch.learning.objectives import is_maximum
from asearch.training.batch import Batch, TrainingSequence, compose, masked_by_decile
from asearch.training.beforehand import by_sequence, known_of, known_to_all, packed, packed_for_critic
from asearch.training.learner import Learner
from asearch.training.microbatch import Known
from asearch.training.part import Part, part_of
from asearch.training.recorded import Logprobs, trained_episodes
from asearch.training.schedule import learning_rate
from asearch.training.snapshot import Snapshot
from asearch.training.trainable import Trainable
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
    signal = batch.has_signal(batch.sequences)
    known: Logprobs = []
    if signal:
        updated, known = _update(learner, batch, command)
        metrics |= updated
        if command.max_recorded_tokens and learner.place.world_size > 1:
            known = known_to_all(learner, batch, known)
    elapsed_ns = time.perf_counter_ns() - started_ns
    n_forwarded = sum(len(s.ids_T) for s in batch.sequences)
    metrics["tokens_per_s"] = n_forwarded / (elapsed_ns * 1e-9) if signal else 0.0
    if learner.device.type == "cuda":
        metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return StepDone(
        step=command.step,
        skipped=not signal,
        n_tokens_trained=batch.n_trained if signal else 0,
        n_tokens_masked_stale=sum(batch.masked),
        staleness=dict(sorted(batch.staleness.items())) if signal else {},
        metrics=metrics,
        elapsed_ns=elapsed_ns,
        # One rank's reply is enough for what may be long.
        episodes=trained_episodes(command, batch, known) if learner.position.rank == 0 else [],
    )


def _update(learner: Learner, batch: Batch, command: TrainStep) -> tuple[dict[str, float], Logprobs]:
    """Metrics of the update, and the log-probabilities under the policy it began from of the sequences that it learned from."""
    parts = [part_of(chosen, learner.algorithm, learner.place) for chosen in _minibatches(batch, learner.settings.minibatches)]
    lr = learning_rate(learner.settings, command.step)
    known = known_of(learner, batch, parts, with_proximal=len(parts) > 1)
    if len(parts) == 1:
        (part,) = parts
        seen: list[Tensor] | None = [] if command.max_recorded_tokens else None
        metrics = _optimize(learner, batch, part, known[0], lr, seen)
        return metrics, by_sequence(learner, part.mine, seen) if seen else []
    models: list[Trainable] = [learner] if learner.critic is None else [learner, learner.critic]
    before = [Snapshot(model) for model in models]
    try:
        done = [_optimize(learner, batch, part, of, lr) for part, of in zip(parts, known, strict=True)]
    except TrainingError:
        for model, snapshot in zip(models, before, strict=True):
            snapshot.restore(model)
        raise
    means = {name: (max if is_maximum(name) else statistics.fmean)([metrics[name] for metrics in done]) for name in done[0]}
    pairs = [(part.mine, of.proximal) for part, of in zip(parts, known, strict=True) if of.proximal is not None]
    return means, [pair for sequences, found in pairs for pair in zip(sequences, found, strict=True)]


def _minibatches(batch: Batch, n: int) -> list[list[TrainingSequence]]:
    groups = sorted({s.group for s in batch.sequences})
    n = min(n, len(groups))
    number_of = {group: place * n // len(groups) for place, group in enumerate(groups)}
    parts: list[list[TrainingSequence]] = [[] for _ in range(n)]
    for sequence in batch.sequences:
        parts[number_of[sequence.group]].append(sequence)
    return _with_signal(batch, parts)


def _with_signal(batch: Batch, parts: list[list[TrainingSequence]]) -> list[list[TrainingSequence]]:
    """`parts` of a batch that has a signal, where one without goes with the next: no step is for nothing, no token left out."""
    chosen: list[list[TrainingSequence]] = []
    silent: list[TrainingSequence] = []
    for part in parts:
        silent += part
        if batch.has_signal(silent):
            chosen.append(silent)
            silent = []
    chosen[-1] += silent
    return chosen


def _optimize(
    learner: Learner, batch: Batch, part: Part, known: Known, lr: float, seen: list[Tensor] | None = None
) -> dict[str, float]:
    critic = learner.critic
    # What can fail comes before anything changes.
    of_critic = {} if critic is None else critic.accumulate(packed_for_critic(learner, batch, part, known))
    sums = {name: float(value) for name, value in learner.accumulate(packed(learner, batch, part, known), seen).items()}
    broken = sorted(name for name in ("loss", "logprob") if not math.isfinite(sums[name]))
    if broken:
        raise TrainingError(f"the sum of {' and '.join(broken)} over the batch is not finite; the update was not made")
    divisors = {"loss": part.weights.divisor}
    metrics = {name: value if is_maximum(name) else value / divisors.get(name, part.n_tokens) for name, value in sums.items()}
    metrics |= of_critic
    metrics["grad_norm"] = learner.apply(lr)
    if critic is not None:
        metrics["critic_grad_norm"] = critic.apply(lr * critic.lr_factor)
    metrics["lr"] = lr
    metrics["n_micro_batches"] = part.n_micro_batches(learner.settings.token_budget)
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
    n_stale = sum(batch.masked)
    metrics["masked_stale_fraction"] = n_stale / (n_stale + batch.n_trained) if n_stale else 0.0
    return metrics | {f"masked_stale_decile_{i}": n for i, n in enumerate(masked_by_decile(batch))}
