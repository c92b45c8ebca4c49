"""Asynchronous against synchronous training under slow tools: the same run with eta = 4 and with eta = 0.

Both arms are whole runs of the toy recipe (broker, actors, engine, trainer) without evaluation. They begin from one
warm-started model, train the same number of steps on the same tasks in the same slots, and their tools wait for the same
heavy-tailed latencies: a latency is a function of (task, member, call). Refills are off, so both do the same work, and the
learning rate is small, so that neither policy comes to search longer than the other.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.bench.measured import Measured, measure
from actors.runtime.bus import Bus
from actors.runtime.following import View, follow
from actors.runtime.local_run import LocalRun, Phases
from actors.runtime.platform import Platform
from actors.runtime.prepare import prepare
from actors.runtime.workspace import Workspace
from asearch.configuration.loading import load_settings
from asearch.configuration.settings import Settings
from asearch.errors import AsearchError
from schemas.events import GroupAdmitted, RunEnded, StepTrained

ARM_TIMEOUT_S = 400.0
ETA = 4
REPORT_S = 5.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """How much work, and how slow the tools are. The latency is a Pareto distribution with tail index `shape`."""

    steps: int = 20
    groups_per_step: int = 4
    group_size: int = 8
    mean_s: float = 0.8
    shape: float = 1.5
    cap_s: float = 8.0
    warmstart_steps: int | None = None


def settings_of_arm(load: Load, eta: int, seed: int, model: Path | None) -> Settings:
    """The toy recipe under this load."""
    values: dict[str, object] = {
        "seed": seed,
        "run.steps": load.steps,
        "run.groups_per_step": load.groups_per_step,
        "run.group_size": load.group_size,
        "run.eta": eta,
        "run.max_refills": 0,
        "run.max_empty_steps": load.steps,
        "run.max_groups_in_flight": 2 * (ETA + 1) * load.groups_per_step,
        "trainer.lr": 1e-5,
        "tools.latency.distribution": "pareto",
        "tools.latency.mean_s": load.mean_s,
        "tools.latency.shape": load.shape,
        "tools.latency.cap_s": load.cap_s,
        "tools.latency.seed": seed,
        "evaluation.before": False,
        "evaluation.after": False,
        "checkpoint.every_steps": load.steps,
    }
    if load.warmstart_steps is not None:
        values["warmstart.steps"] = load.warmstart_steps
    if model is not None:
        values["model.path"] = str(model)
    return load_settings("toy", (), values)


async def compare(load: Load, seed: int, folder: Path, platform: Platform, say: Say) -> dict[str, object]:
    """Run both arms one after the other, each in a workspace of its own below `folder`; the result as the command prints it."""
    begun_s = platform.monotonic()
    phases = Phases(platform.monotonic)
    fresh = settings_of_arm(load, 0, seed, None)
    prepared = await prepare(fresh, folder / "model", platform, say, phases)
    model = folder / "policy"
    await asyncio.to_thread(shutil.copytree, prepared.model_dir, model)
    arms: dict[str, Measured] = {}
    for name, eta in (("sync", 0), ("async", ETA)):
        say(f"{name} arm: eta {eta}, {load.steps} steps of {load.groups_per_step} groups of {load.group_size}")
        settings = settings_of_arm(load, eta, seed, model)
        with phases.phase(name):
            arms[name] = await run_arm(Workspace(folder / name), name, settings, platform, say)
    sync, ahead = arms["sync"], arms["async"]
    return {
        "bench": "async",
        "seed": seed,
        "speedup": round(sync.wall_s / ahead.wall_s, 3),
        "sync": sync.to_json(sync.sync_bound_s),
        "async": ahead.to_json(ahead.async_bound_s),
        "latency": sync.settings.tools.latency,
        "phases_s": {name: round(seconds, 1) for name, seconds in phases.seconds.items()},
        "wall_s": round(platform.monotonic() - begun_s, 1),
    }


async def run_arm(workspace: Workspace, name: str, settings: Settings, platform: Platform, say: Say) -> Measured:
    """One run from start to end; every process of it is gone when this returns. Raises AsearchError if it does not complete."""
    local = LocalRun(workspace, name, settings, platform, say)
    async with local.started() as bus, follow(bus, local.run_dir) as view:
        ended = await _live(local, view, name, platform, say)
        if ended.reason != "completed":
            raise AsearchError(f"the {name} arm ended with {ended.reason}: {ended.message}; see {local.run_dir / 'logs'}")
        admitted, trained = await _facts(bus)
    return await asyncio.to_thread(measure, settings, admitted, trained, local.run_dir / "archive" / "episodes.jsonl")


async def _live(local: LocalRun, view: View, name: str, platform: Platform, say: Say) -> RunEnded:
    """Keep the actors alive until the run ends, then stop them."""
    actors = asyncio.create_task(local.supervise(), name="supervise")
    ended = asyncio.create_task(local.until_ended(), name="ended")
    telling = asyncio.create_task(_tell(view, name, platform, say), name="tell")
    try:
        async with asyncio.timeout(ARM_TIMEOUT_S):
            await asyncio.wait({actors, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await actors
        return ended.result()
    except TimeoutError:
        raise AsearchError(f"the {name} arm did not end within {ARM_TIMEOUT_S:g} s; see {local.run_dir / 'logs'}") from None
    finally:
        for task in (telling, actors, ended):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _tell(view: View, name: str, platform: Platform, say: Say) -> None:
    told = -1
    while True:
        await platform.sleep(REPORT_S)
        n_steps = len(view.report.journal.steps)
        if view.report.planned_steps and n_steps != told:
            say(f"{name} arm: {n_steps}/{view.report.planned_steps} steps")
            told = n_steps


async def _facts(bus: Bus) -> tuple[list[GroupAdmitted], list[StepTrained]]:
    admitted: list[GroupAdmitted] = []
    trained: list[StepTrained] = []
    for stream in ("plan", "policy"):
        async with contextlib.aclosing(bus.read(stream, follow=False)) as reader:
            async for stored in reader:
                if isinstance(stored.event, GroupAdmitted):
                    admitted.append(stored.event)
                elif isinstance(stored.event, StepTrained):
                    trained.append(stored.event)
    return admitted, trained
