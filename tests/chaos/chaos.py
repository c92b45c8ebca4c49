"""One run with its faults: start, inject, drain, judge."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import psutil

from actors.runtime.bus import Bus
from actors.runtime.following import View, follow
from actors.runtime.launching import tokens_sampled
from actors.runtime.local_run import LocalRun
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import read_run_file
from actors.runtime.workspace import Workspace
from asearch.errors import AsearchError
from schemas.events import EpisodeRequested, Event, RunEnded
from tests.chaos.counting import idle_s, read_archive, steps_repeated
from tests.chaos.injection import ChaosError, Injector
from tests.chaos.judging import Recorded, audited, verdict
from tests.chaos.scale import Scale, settings_of
from tests.chaos.schedule import Fault
from tests.chaos.victims import NoVictimError, Victims
from tests.chaos.watch import watching

RUN = "chaos"
MAX_RESTARTS = 40
"""Failures of one process in a minute that the run bears: chaos must not be what ends it."""
DRAIN_TIMEOUT_S = 900.0
END_S = 5.0
Say = Callable[[str], None]


async def chaos(folder: Path, scale: Scale, seed: int, faults: list[Fault], say: Say) -> dict[str, Any]:
    """Train in a workspace at `folder` while the faults come; the verdict. Raises ChaosError or AsearchError.

    No process is left when this returns or raises.
    """
    begun_s = time.monotonic()
    settings = settings_of(scale, seed, len(faults))
    local = LocalRun(Workspace(folder), RUN, settings, SystemPlatform(), say, max_restarts=MAX_RESTARTS)
    try:
        async with local.started() as bus, follow(bus, local.run_dir) as view, watching(bus) as watch:
            injector = Injector(local, watch, Victims(local), say, len(faults))
            ended = await _live(injector, faults)
            await view.catch_up(bus)
            write_result(local, view)
            plan, policy = await _events(bus, "plan"), await _events(bus, "policy")
    except* (ChaosError, NoVictimError, AsearchError) as group:
        raise _first(group) from None
    say(f"the run ended ({ended.reason}); auditing")
    audit = await audited(folder, RUN)
    recorded = Recorded(
        requested={event.episode for event in plan if isinstance(event, EpisodeRequested)},
        turns=await asyncio.to_thread(read_archive, local.run_dir / "archive" / "episodes.jsonl"),
        engine_asks=watch.counted("n_requests", "engine"),
        steps_repeated=steps_repeated(policy),
        accuracy={label: _accuracy(view, label) for label in ("before", "after")},
        ended=ended.reason,
        abandoned=watch.counted("n_abandoned", "driver"),
        restarts={name: n for name, (_, n) in local.supervisor.children.items()},
        left_over=await left_over(folder, local.run_dir),
        tokens_sampled=tokens_sampled(local.run_dir),
        idle_s=idle_s(policy),
        engine=settings.engine.kind,
    )
    (local.run_dir / "faults.jsonl").write_bytes(
        b"".join(msgspec.json.encode(each.to_json()) + b"\n" for each in injector.struck)
    )
    result = verdict(injector.struck, recorded, audit, learns=scale.learns)
    return {"seed": seed, **result, "wall_s": round(time.monotonic() - begun_s, 1)}


def _first(error: BaseException) -> BaseException:
    """The first error of nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _live(injector: Injector, faults: list[Fault]) -> RunEnded:
    """Keep the actors alive while the faults come and until the run ends by itself, then stop them; kill them on failure."""
    local = injector.local
    actors = asyncio.create_task(local.supervise(), name="supervise")
    ended = asyncio.create_task(local.until_ended(), name="ended")
    chaos = asyncio.create_task(_inject_and_drain(injector, faults), name="chaos")
    orderly = False
    try:
        await asyncio.wait({actors, chaos}, return_when=asyncio.FIRST_COMPLETED)
        if not chaos.done():
            await actors
            raise ChaosError("the actors were stopped by somebody else")
        await chaos
        async with asyncio.timeout(60.0):
            found = await ended
        orderly = True
        return found
    finally:
        injector.victims.release()
        for task in (chaos, ended):
            task.cancel()
        if not orderly:
            local.supervisor.kill()
        actors.cancel()
        await asyncio.gather(actors, chaos, ended, return_exceptions=True)
        injector.victims.release()


async def _inject_and_drain(injector: Injector, faults: list[Fault]) -> None:
    await injector.inject(faults)
    watch = injector.watch
    injector.say(f"the schedule is over at step {watch.step}; the run goes on to its end")
    if not await watch.until(lambda: watch.ended, DRAIN_TIMEOUT_S):
        raise ChaosError(f"the run did not end within {DRAIN_TIMEOUT_S:g} s of the last fault; it is at step {watch.step}")


async def _events(bus: Bus, stream: str) -> list[Event]:
    async with aclosing(bus.read(stream, follow=False)) as reader:
        return [stored.event async for stored in reader if stored.event is not None]


def write_result(local: LocalRun, view: View) -> None:
    """What `asearch train` leaves too: the audit holds it against its own count."""
    result = view.report.to_json() | {"run": local.run}
    (local.run_dir / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))


def _accuracy(view: View, label: str) -> float | None:
    found = view.report.evaluation(label).get("accuracy")
    return float(found) if isinstance(found, int | float) else None


async def left_over(folder: Path, run_dir: Path) -> list[str]:
    """What is there after END_S: processes that name the run's folder, and the folder of its weights in shared memory.

    A rank whose trainer was killed ends when it sees that, and not before.
    """
    deadline_s = time.monotonic() + END_S
    while (found := _left_over(folder, run_dir)) and time.monotonic() < deadline_s:  # noqa: ASYNC110 -- nobody tells of their end
        await asyncio.sleep(0.2)
    return found


def _left_over(folder: Path, run_dir: Path) -> list[str]:
    found: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.pid != os.getpid() and "tests.chaos" not in line:
            found.append(line)
    with contextlib.suppress(Exception):
        weights = Path(read_run_file(run_dir).weights_dir)
        if weights.is_dir() and not weights.is_relative_to(folder):
            found.append(str(weights))
    return found
