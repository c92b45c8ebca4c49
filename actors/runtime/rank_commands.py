"""What a rank is told, from the settings of a run: the trainer, and whoever trains recorded batches again, say the same."""

from collections.abc import Sequence

import msgspec

from asearch.configuration.settings import Settings
from schemas.local import LoadModel, TrainGroup, TrainStep
from schemas.records import Version


def load_model(settings: Settings, model_dir: str) -> LoadModel:
    """Build the policy from a folder."""
    return LoadModel(model_dir=model_dir, settings=msgspec.json.encode(settings.trainer), seed=settings.seed)


def train_step(settings: Settings, step: int, lineage: int, claims: Sequence[Version], groups: list[TrainGroup]) -> TrainStep:
    """Update from policy step `step` to the next. `claims` are all that the model has had, that of `lineage` last."""
    return TrainStep(
        step=step,
        lineage=lineage,
        groups=groups,
        max_staleness=settings.run.eta,
        rule=settings.run.rule,
        claims=tuple(claims),
        max_recorded_tokens=settings.trainer.max_recorded_tokens,
    )


def permute_seed(settings: Settings, step: int) -> str | None:
    """Seed of the shuffle of a batch's rewards; None where they stay as they are."""
    return f"{settings.seed}-{step}" if settings.rewards.permute else None
