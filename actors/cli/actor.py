"""`asearch actor KIND`: one actor process of a run, as supervisors and systemd start it."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import click
import structlog
import uvloop

from actors.runtime.actor import Actor, Context
from actors.runtime.jetstream import connect
from actors.runtime.logs import configure_logs
from actors.runtime.otlp import tracing_of
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, read_run_file
from asearch import parent

SPANS_TIMEOUT_S = 2.0
"""How long an actor that ends waits for its last spans to be taken."""
KINDS = ("scheduler", "driver", "engine", "tool", "grader", "trainer", "recorder", "viewer")


@click.command("actor")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--run", "run_dir", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--id", "actor_id", help="Name among the actors of the run; KIND-0 unless given.")
@click.option("--die-with-parent", is_flag=True, help="Be killed when the process that started this one ends (Linux).")
def actor(kind: str, run_dir: Path, actor_id: str | None, die_with_parent: bool) -> None:
    """Run one actor of a run until it is told to stop."""
    configure_logs()
    if die_with_parent:
        # Killed, not drained: a run whose supervisor died has not ended, it goes on when it is started again.
        parent.die_with_parent(signal.SIGKILL, read_run_file(run_dir.resolve()).supervisor_pid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_live(kind, run_dir.resolve(), actor_id or f"{kind}-0"))


async def _live(kind: str, run_dir: Path, actor_id: str) -> None:
    content = read_run_file(run_dir)
    platform = SystemPlatform()
    # Every line says of which run it is; with the episode that names the trace.
    structlog.contextvars.bind_contextvars(run=content.run, actor=actor_id)
    tracing = tracing_of(kind, actor_id, content.run)
    bus = await connect(content.broker_url, content.run, actor_id, platform, only_looks=kind == "viewer")
    try:
        context = Context(
            run=content.run,
            run_dir=run_dir,
            settings=content.settings,
            bus=bus,
            platform=platform,
            actor_id=actor_id,
            tracing=tracing,
        )
        living = BUILDERS[kind](context, content)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, living.stop)
        await living.run()
    finally:
        await bus.close()
        await tracing.close(SPANS_TIMEOUT_S)


def _scheduler(context: Context, content: RunFile) -> Actor:
    from actors.scheduler import Scheduler
    from asearch.data.tasks import load_tasks

    limit = content.settings.data.max_question_chars
    return Scheduler(context, load_tasks(Path(content.train_tasks), limit), load_tasks(Path(content.eval_tasks), limit))


def _driver(context: Context, content: RunFile) -> Actor:
    from actors.driver import Driver

    return Driver(context, content.model_dir)


def _engine(context: Context, content: RunFile) -> Actor:
    from actors.engine import Engine

    return Engine(context, content.model_dir, weights_dir=Path(content.weights_dir))


def _tool(context: Context, content: RunFile) -> Actor:
    from actors.tool import Tool

    return Tool(context, content.corpus_url)


def _grader(context: Context, content: RunFile) -> Actor:
    from actors.grader import Grader

    return Grader(context)


def _trainer(context: Context, content: RunFile) -> Actor:
    from actors.trainer import Trainer

    return Trainer(context, content.model_dir, Path(content.weights_dir))


def _recorder(context: Context, content: RunFile) -> Actor:
    from actors.recorder import Recorder

    return Recorder(context)


def _viewer(context: Context, content: RunFile) -> Actor:
    from actors.viewer import Viewer

    return Viewer(context, content)


BUILDERS: dict[str, Callable[[Context, RunFile], Actor]] = {
    "scheduler": _scheduler,
    "driver": _driver,
    "engine": _engine,
    "tool": _tool,
    "grader": _grader,
    "trainer": _trainer,
    "recorder": _recorder,
    "viewer": _viewer,
}
