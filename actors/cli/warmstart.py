"""`asearch warmstart RECIPE --out DIR`: the policy that a run of the recipe would begin with, as a Hugging Face folder."""

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from actors.cli.train import settings_of
from actors.runtime.local_run import Phases
from actors.runtime.platform import SystemPlatform
from actors.runtime.prepare import prepare
from asearch.configuration.settings import Settings
from asearch.errors import InputError

_PATH = click.Path(path_type=Path)


@click.command("warmstart")
@click.argument("recipe", default="toy")
@click.option("--out", type=_PATH, required=True, help="New or empty folder for the model.")
@click.option("--seed", type=int, help="Seed of world, model and demonstrations.")
@click.option("--corpus", type=_PATH, help="JSONL of {id, contents, url?, title?}; a generated world unless given.")
@click.option("--tasks", type=_PATH, help="JSONL of {id, question, answer}; goes with --corpus.")
@click.option("--eval-tasks", type=_PATH, help="JSONL of held-out questions, which the warm start must not see.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Any setting; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line at the end.")
def warmstart(recipe: str, out: Path, as_json: bool, **given: Any) -> None:
    """Make a small model and its tokenizer, teach it RECIPE's protocol from scripted episodes, and write it to --out.

    `asearch train --model DIR` begins with it. Progress goes to stderr, the folder's path to stdout.
    """
    settings = settings_of(recipe, given)
    out = out.resolve()
    if settings.model.path is not None:
        raise click.UsageError(f"model.path is {settings.model.path}: that model is taken as it is, nothing is to be made")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: give --out a new folder")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        phases_s = runner.run(make_model(settings, out))
    if as_json:
        click.echo(msgspec.json.encode({"model": str(out), "phases_s": phases_s}).decode())
    else:
        click.echo(str(out))


async def make_model(settings: Settings, out: Path) -> dict[str, float]:
    """Write the warm-started model of these settings to `out`; seconds by phase. A folder in the cache is copied.

    Raises InputError for inputs that cannot be read and an `out` that cannot be written.
    """
    platform = SystemPlatform()
    phases = Phases(platform.monotonic)
    with tempfile.TemporaryDirectory(prefix="asearch-warmstart-") as folder:
        prepared = await prepare(settings, Path(folder), platform, _say, phases)
        await asyncio.to_thread(_put, prepared.model_dir, out)
    return {name: round(seconds, 1) for name, seconds in phases.seconds.items()}


def _put(model_dir: Path, out: Path) -> None:
    """Copy aside, then rename: `out` is never half a model."""
    aside = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(model_dir, aside)
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()
        aside.rename(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}. Give --out a folder that can be written.") from error


def _say(text: str) -> None:
    click.echo(text, err=True)
