"""The recorded steps of a run trained again from its initial weights, by ranks of our own; nothing is written to its streams."""

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from actors.runtime.platform import Platform
from actors.runtime.rank_commands import load_model, train_step
from actors.runtime.rank_group import start_ranks
from actors.runtime.ranks import Rank
from actors.runtime.recorded_steps import RecordedStep, RecordedSteps
from actors.runtime.run_source import RunSource
from asearch.configuration.settings import Settings
from asearch.errors import ConfigError, InputError
from schemas.local import ModelLoaded, StepDone, TrainGroup

STEP_TIMEOUT_S = 3600.0


class ReplayedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step as it came out now, beside what was recorded. None where there was no update."""

    step: int
    lineage: int
    """That recorded it."""
    n_groups: int
    loss: float | None
    recorded_loss: float | None
    loss_difference: float | None
    """Absolute; None where one of the two is."""
    grad_norm: float | None
    recorded_grad_norm: float | None
    grad_norm_difference: float | None
    n_tokens_trained: int
    recorded_n_tokens_trained: int
    n_tokens_forwarded: int
    elapsed_s: float


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What `asearch train --replay` reports under `replay`."""

    run: str
    steps: int
    updates: int
    """Steps that made an update, then and now."""
    settings: dict[str, object]
    """What is other than in the run, by dotted path."""
    max_loss_difference: float | None
    """Over the updates; None without any."""
    max_grad_norm_difference: float | None
    same_tokens: bool
    """Whether every step trained as many tokens as the run's trainer did."""
    n_tokens: int
    """Tokens that were forwarded, in all."""
    tokens_per_s: float
    """Of the updates alone, each with its forward and backward pass and the optimizer's step."""
    wall_s: float
    by_step: list[ReplayedStep]


def changed_settings(before: Settings, after: Settings) -> dict[str, object]:
    """What differs, by dotted path, as it is in `after`. Raises ConfigError where that would train other batches."""
    found = dict(_differences("", msgspec.to_builtins(before), msgspec.to_builtins(after)))
    foreign = [path for path in found if not path.startswith("trainer.")]
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)} cannot be changed in a replay: it trains the batches that the run trained, so only settings "
            "of the table trainer may differ"
        )
    return found


def _differences(path: str, before: object, after: object) -> list[tuple[str, object]]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = dict.fromkeys([*before, *after])
        dotted = [(f"{path}.{name}" if path else str(name), before.get(name), after.get(name)) for name in names]
        return [pair for each in dotted for pair in _differences(*each)]
    return [] if before == after else [(path, after)]


async def replay_steps(
    source: RunSource,
    settings: Settings,
    n_steps: int | None,
    platform: Platform,
    log_path: Path,
    heard: Callable[[ReplayedStep], None],
) -> Replay:
    """Train the first `n_steps` recorded steps, or all, under `settings`; `heard` is told of each. Ranks log beside `log_path`.

    Raises ConfigError for settings that make other batches and for more steps than there are, InputError where what is recorded
    does not suffice, TrainingError as a trainer does.
    """
    changed = changed_settings(source.content.settings, settings)
    recorded = RecordedSteps(source)
    await recorded.read()
    n = _wanted(source.run, n_steps, len(recorded))
    model_dir = source.content.model_dir
    if not model_dir or not Path(model_dir).is_dir():
        raise InputError(f"the model that run '{source.run}' began with is gone: {model_dir or 'none was ever made'}")
    begun_s = platform.monotonic()
    steps: list[ReplayedStep] = []
    rank = await start_ranks(platform, settings.trainer, log_path)
    try:
        await rank.ask(load_model(settings, model_dir), ModelLoaded, STEP_TIMEOUT_S)
        async with aclosing(recorded.batches(n)) as batches:
            async for step, groups in batches:
                steps.append(await _replayed(rank, settings, step, groups))
                heard(steps[-1])
    finally:
        await rank.stop()
    return _summary(source.run, changed, steps, platform.monotonic() - begun_s)


def _wanted(run: str, n_steps: int | None, n_recorded: int) -> int:
    if not n_recorded:
        raise InputError(f"run '{run}' has trained no step yet")
    if n_steps is not None and n_steps > n_recorded:
        raise ConfigError(f"run '{run}' has {n_recorded} recorded steps, not {n_steps}: ask for at most so many with --steps")
    return n_recorded if n_steps is None else n_steps


async def _replayed(rank: Rank, settings: Settings, recorded: RecordedStep, groups: list[TrainGroup]) -> ReplayedStep:
    trained = recorded.trained
    done: StepDone | None = None
    if groups:
        command = train_step(settings, trained.step, trained.lineage, recorded.claims, groups)
        done = await rank.ask(command, StepDone, STEP_TIMEOUT_S)
    metrics = done.metrics if done else {}
    return ReplayedStep(
        step=trained.step,
        lineage=trained.lineage,
        n_groups=len(groups),
        loss=metrics.get("loss"),
        recorded_loss=trained.metrics.get("loss"),
        loss_difference=_apart("loss", metrics, trained.metrics),
        grad_norm=metrics.get("grad_norm"),
        recorded_grad_norm=trained.metrics.get("grad_norm"),
        grad_norm_difference=_apart("grad_norm", metrics, trained.metrics),
        n_tokens_trained=done.n_tokens_trained if done else 0,
        recorded_n_tokens_trained=trained.n_tokens_trained,
        n_tokens_forwarded=int(metrics["n_tokens_forwarded"]) if done and not done.skipped else 0,
        elapsed_s=done.elapsed_ns * 1e-9 if done else 0.0,
    )


def _apart(name: str, metrics: dict[str, float], recorded: dict[str, float]) -> float | None:
    return abs(metrics[name] - recorded[name]) if name in metrics and name in recorded else None


def _summary(run: str, changed: dict[str, object], steps: list[ReplayedStep], wall_s: float) -> Replay:
    losses = [each.loss_difference for each in steps if each.loss_difference is not None]
    norms = [each.grad_norm_difference for each in steps if each.grad_norm_difference is not None]
    elapsed_s = sum(each.elapsed_s for each in steps if each.n_tokens_forwarded)
    n_tokens = sum(each.n_tokens_forwarded for each in steps)
    return Replay(
        run=run,
        steps=len(steps),
        updates=len(losses),
        settings=changed,
        max_loss_difference=max(losses, default=None),
        max_grad_norm_difference=max(norms, default=None),
        same_tokens=all(each.n_tokens_trained == each.recorded_n_tokens_trained for each in steps),
        n_tokens=n_tokens,
        tokens_per_s=n_tokens / elapsed_s if elapsed_s else 0.0,
        wall_s=wall_s,
        by_step=steps,
    )
