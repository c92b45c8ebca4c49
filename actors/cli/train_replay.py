"""`asearch train RECIPE --replay RUN`: the recorded steps of a run trained again under other trainer settings."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from actors.cli import looking
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import RunSource
from actors.runtime.step_replay import Replay, ReplayedStep, replay_steps
from asearch.configuration.loading import change_settings
from asearch.errors import ConfigError

EXCLUDED = ("run", "seed", "corpus", "pages", "tasks", "eval_tasks", "model", "port")
"""Options of `asearch train` that say what the recorded run has said already."""
HEADER = "step  lineage  groups  tokens        loss  difference   grad norm  difference        s"


def replay_run(
    root: Path, run: str, recipe: str | None, overrides: Sequence[str], n_steps: int | None, *, as_json: bool, dry_run: bool
) -> int:
    """Train the run's steps again and tell of it; the exit status. Raises ConfigError, InputError, TrainingError."""
    if n_steps is not None and n_steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {n_steps}")
    found = looking.looked(root, run, lambda source: _replayed(source, recipe, overrides, n_steps, not as_json, dry_run))
    if found is None:
        return 0 if dry_run else 130
    if as_json:
        looking.say_json({"run": run, "replay": found})
    else:
        _tell(found)
    return 0


async def _replayed(
    source: RunSource, recipe: str | None, overrides: Sequence[str], n_steps: int | None, is_told: bool, dry_run: bool
) -> Replay | None:
    recorded = source.content.settings
    if recipe is not None and recipe != recorded.recipe:
        raise ConfigError(f"run '{source.run}' was made with the recipe '{recorded.recipe}', not '{recipe}'")
    settings = change_settings(recorded, overrides)
    if dry_run:
        click.echo(msgspec.json.format(msgspec.json.encode(settings)).decode())
        return None

    def heard(step: ReplayedStep) -> None:
        if is_told and step.step == 0:
            looking.say(HEADER)
        if is_told:
            looking.say(_line(step))

    with tempfile.TemporaryDirectory(prefix="asearch-replay-") as folder:
        return await replay_steps(source, settings, n_steps, SystemPlatform(), Path(folder) / "rank.log", heard)


def _line(step: ReplayedStep) -> str:
    return (
        f"{step.step:>4}  {step.lineage:>7}  {step.n_groups:>6}  {step.n_tokens_trained:>6}  {_number(step.loss, '10.6f')}  "
        f"{_number(step.loss_difference, '10.2e')}  {_number(step.grad_norm, '10.6f')}  "
        f"{_number(step.grad_norm_difference, '10.2e')}  {step.elapsed_s:>7.2f}"
    )


def _number(value: float | None, form: str) -> str:
    return format("-", ">" + form.partition(".")[0]) if value is None else format(value, form)


def _tell(replay: Replay) -> None:
    changed = ", ".join(f"{path}={value}" for path, value in replay.settings.items()) or "no setting changed"
    looking.say(f"run '{replay.run}', {changed}: {replay.updates} updates in {replay.steps} steps, {replay.wall_s:.1f} s in all")
    if replay.max_loss_difference is not None:
        looking.say(
            f"largest difference from the record: loss {replay.max_loss_difference:.3g}, gradient norm "
            f"{replay.max_grad_norm_difference:.3g}; {replay.tokens_per_s:,.0f} tokens/s"
        )
    if not replay.same_tokens:
        looking.say("some steps trained another number of tokens than the run's trainer: see n_tokens_trained with --json")
