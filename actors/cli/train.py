"""`asearch train RECIPE`: prepare, train, evaluate, and say what came of it."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from actors.cli.session import RESULT, Session
from actors.runtime.local_run import LocalRun
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RUN_FILE, check_name, read_run_file
from actors.runtime.workspace import Workspace
from asearch.configuration.engine import KINDS
from asearch.configuration.loading import load_settings, recipe_hash, recipe_name
from asearch.configuration.settings import Settings
from asearch.errors import ConfigError
from asearch.training import checkpoints

CHECKPOINTS = "checkpoints"
_PATH = click.Path(path_type=Path)


@click.command("train")
@click.argument("recipe", default="toy")
@click.option("--run", "run", help="Name of the run; RECIPE-1, RECIPE-2 ... unless given. A run that crashed goes on.")
@click.option("--runs", "root", type=_PATH, default=Path("runs"), show_default=True, help="Folder that holds the runs.")
@click.option("--seed", type=int, help="Seed of world, model, sampling and plan.")
@click.option("--steps", type=int, help="Policy updates.")
@click.option("--corpus", type=_PATH, help="JSONL of {id, contents, url?, title?}, e.g. Search-R1's wiki-18.")
@click.option("--pages", type=_PATH, help="JSONL of {url, contents}: full pages for --corpus.")
@click.option("--tasks", type=_PATH, help="JSONL of {id, question, answer}; a part is held out unless --eval-tasks is given.")
@click.option("--eval-tasks", type=_PATH, help="JSONL of held-out questions.")
@click.option("--model", type=_PATH, help="Hugging Face folder of a Qwen2, Qwen3 or Llama model.")
@click.option("--engine", type=click.Choice(KINDS), help="Kind of the inference servers; engine.kind unless given.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Any setting; may be repeated.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the broker on loopback; 0 takes a free one.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line at the end.")
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
@click.option("--replay", "replayed", metavar="RUN", help="Train RUN's recorded steps again, from its initial weights and with "
              "its settings but for those given by -s trainer.KEY=VALUE; --steps takes the first so many.")  # fmt: skip
@click.pass_context
def train(
    ctx: click.Context,
    recipe: str,
    run: str | None,
    root: Path,
    port: int,
    as_json: bool,
    dry_run: bool,
    replayed: str | None,
    **given: Any,
) -> None:
    """Train a search agent with RECIPE (a name or a TOML file) on this machine."""
    if replayed is not None:
        sys.exit(_replay(ctx, root, replayed, as_json=as_json, dry_run=dry_run))
    settings = settings_of(recipe, given)
    if dry_run:
        click.echo(msgspec.json.format(msgspec.json.encode(settings)).decode())
        return
    workspace = Workspace(root)
    name = check_name(run or workspace.next_name(settings.recipe))
    result = run_here(workspace, name, settings, port, as_json=as_json)
    sys.exit(result)


def _replay(ctx: click.Context, root: Path, run: str, *, as_json: bool, dry_run: bool) -> int:
    from actors.cli.train_replay import EXCLUDED, replay_run

    def is_given(name: str) -> bool:
        return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT

    for name in filter(is_given, EXCLUDED):
        option = f"--{name.replace('_', '-')}"
        raise click.UsageError(f"{option} does not go with --replay: the recorded run says it already")
    recipe = recipe_name(ctx.params["recipe"]) if is_given("recipe") else None
    return replay_run(root, run, recipe, ctx.params["overrides"], ctx.params["steps"], as_json=as_json, dry_run=dry_run)


def settings_of(recipe: str, given: dict[str, Any]) -> Settings:
    """The settings that the options of the command line describe."""
    values: dict[str, object] = {}
    for option, path in (("seed", "seed"), ("steps", "run.steps"), ("engine", "engine.kind")):
        if given.get(option) is not None:
            values[path] = given[option]
    for option, path in (("corpus", "data.corpus"), ("pages", "data.pages"), ("tasks", "data.tasks")):
        if given.get(option) is not None:
            values[path] = str(given[option].resolve())
    if given.get("eval_tasks") is not None:
        values["data.eval_tasks"] = str(given["eval_tasks"].resolve())
    if given.get("model") is not None:
        values["model.path"] = str(given["model"].resolve())
    return load_settings(recipe, given.get("overrides", ()), values)


def run_here(workspace: Workspace, name: str, settings: Settings, port: int, *, as_json: bool, opens_page: bool = False) -> int:
    """Run it in this process and its children until it ends or is interrupted; the exit status.

    Raises ConfigError if the run is live, has ended or was begun with other settings, CheckpointError if its newest checkpoint
    is corrupt.
    """
    if (workspace.run_dir(name) / RESULT).is_file():
        raise ConfigError(
            f"run '{name}' has ended (see {workspace.run_dir(name) / RESULT}): choose another --run, or delete its folder"
        )
    if any(content.run == name for content in workspace.live_runs()):
        raise ConfigError(f"run '{name}' is live: attach with `asearch up --run {name}`, or choose another --run")
    settings = settings_to_go_on(workspace.run_dir(name), settings)
    checkpoints.newest(workspace.run_dir(name) / CHECKPOINTS)  # refuses a corrupt one before any process starts
    platform = SystemPlatform()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        local = LocalRun(workspace, name, settings, platform, _say, port)
        return runner.run(_run(Session(local, as_json=as_json, opens_page=opens_page)))


def settings_to_go_on(run_dir: Path, settings: Settings) -> Settings:
    """The settings, if the run is new or was begun with them: plan, tasks and checkpoints are of these. Raises ConfigError."""
    if not (run_dir / RUN_FILE).is_file():
        return settings
    begun = read_run_file(run_dir).settings
    if begun.run.equal_rewards is None:
        # Begun before runs said what they decide: it goes on by the same rule as before.
        settings = msgspec.structs.replace(settings, run=msgspec.structs.replace(settings.run, equal_rewards=None))
    if recipe_hash(begun) != recipe_hash(settings):
        raise ConfigError(
            f"run '{run_dir.name}' was begun with other settings (recipe hash {recipe_hash(begun)}, now {recipe_hash(settings)}; "
            f"they are in {run_dir / RUN_FILE}): give the same ones to go on, choose another --run, or delete its folder"
        )
    return settings


async def _run(session: Session) -> int:
    task = asyncio.create_task(session.run(), name="session")
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, session.interrupt, task)
    try:
        return await task
    except asyncio.CancelledError:
        _say("stopped before the actors ran; nothing was lost")
        return 130


def stop_signals() -> list[signal.Signals]:
    """The signals that end a run in order; SIGHUP only where it is not ignored, as under nohup."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def _say(text: str) -> None:
    click.echo(text, err=True)
