"""The learning rate as a function of the update's number, so that a restored trainer needs no state for it."""

import math

from asearch.training.settings import TrainerSettings


def learning_rate(settings: TrainerSettings, step: int) -> float:
    """The rate of the update from policy step `step` to `step + 1`."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    span = settings.decay_steps - settings.warmup_steps
    done = min((step - settings.warmup_steps) / span, 1.0)
    left = 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.min_lr + (settings.lr - settings.min_lr) * left
