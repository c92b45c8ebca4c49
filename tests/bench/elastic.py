"""Engines join and leave a training run by a Poisson schedule: does it complete, what is lost, does throughput follow capacity.

Run it as `python -m tests.bench.elastic --minutes 10 --every-s 20 --seed 0 [--json]`. Every engine is an embedded server whose
steps take `--step-ms` longer than they need and that runs few requests at once: capacity is then what the number of engines makes
it, and not what the cores of this machine leave. Changes go the way of `asearch engines add` and `remove`; of the removals a
share is SIGKILL to actor and server, the others SIGTERM.

Tokens lost are those that servers have sampled (each counts in a file that outlives it) less those recorded in TRACE.
"""

import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog
import uvloop

from actors.runtime.bus import Bus
from actors.runtime.following import View, follow
from actors.runtime.launching import tokens_sampled
from actors.runtime.local_run import LocalRun
from actors.runtime.membership import membership_of
from actors.runtime.platform import SystemPlatform
from actors.runtime.workspace import Workspace
from asearch.configuration.loading import load_settings
from asearch.configuration.settings import Settings
from schemas.commands import AddEngines, EnginesChanged, RemoveEngines
from schemas.events import RunEnded
from tests.chaos.chaos import left_over, write_result
from tests.chaos.judging import audited

RUN = "elastic"
LEAST, MOST = 1, 3
KILLED_SHARE = 0.5
PLACES = 8
NOMINAL_TOKENS_PER_S = 260.0
"""Of one engine, for the number of steps that fills the minutes."""
NOMINAL_TOKENS_PER_EPISODE = 40.0
LOOK_S = 1.0
MOST_LOST = 0.01
MAX_OVERTIME = 4.0


@dataclass(frozen=True)
class Change:
    """One event of the schedule: `add`, `remove` (with notice) or `kill`; `draw` picks the victim."""

    after_s: float
    kind: str
    draw: int = 0


def changes(seed: int, every_s: float, n_engines: int = 1) -> Iterator[Change]:
    """An endless Poisson process of changes that keeps LEAST to MOST engines: a function of the seed."""
    chance = random.Random(f"elastic-{seed}")
    while True:
        after_s = chance.expovariate(1 / every_s)
        adds = n_engines == LEAST or (n_engines < MOST and chance.random() < 0.5)
        n_engines += 1 if adds else -1
        kind = "add" if adds else ("kill" if chance.random() < KILLED_SHARE else "remove")
        yield Change(after_s, kind, chance.randrange(1 << 16))


def settings_of(seed: int, minutes: float, step_ms: float) -> Settings:
    """The toy recipe with slow engines, long enough for the minutes at two engines."""
    groups, size = 4, 8
    steps = round(minutes * 60 * 2 * NOMINAL_TOKENS_PER_S / (groups * size * NOMINAL_TOKENS_PER_EPISODE))
    return load_settings(
        "toy",
        (),
        {
            "seed": seed,
            "run.steps": max(steps, 8),
            "run.groups_per_step": groups,
            "run.group_size": size,
            "run.max_empty_steps": max(steps, 8),
            "evaluation.before": False,
            "evaluation.after": False,
            "engine.max_running_requests": PLACES,
            "engine.step_delay_s": step_ms / 1000,
            "viewer.enabled": False,
            "archive.parquet": False,
        },
    )


@dataclass
class Samples:
    """What was seen once a second: engines that serve, tokens sampled by all of them."""

    seconds: dict[int, float] = field(default_factory=lambda: defaultdict[int, float](float))
    tokens: dict[int, int] = field(default_factory=lambda: defaultdict[int, int](int))
    _last: tuple[float, int, int] | None = None

    def take(self, now_s: float, n_engines: int, n_tokens: int) -> None:
        """One look; time between two looks counts where both saw the same number of engines."""
        if self._last is not None and self._last[1] == n_engines:
            self.seconds[n_engines] += now_s - self._last[0]
            self.tokens[n_engines] += n_tokens - self._last[2]
        self._last = (now_s, n_engines, n_tokens)

    def table(self) -> list[dict[str, float]]:
        """Tokens a second by number of engines."""
        return [
            {"engines": n, "seconds": round(self.seconds[n], 1), "tokens_per_s": round(self.tokens[n] / self.seconds[n], 1)}
            for n in sorted(self.seconds)
            if self.seconds[n] >= 1.0
        ]


class Experiment:
    """One run with its schedule."""

    def __init__(self, folder: Path, seed: int, minutes: float, every_s: float, step_ms: float) -> None:
        self.seed, self.minutes, self.every_s = seed, minutes, every_s
        self.settings = settings_of(seed, minutes, step_ms)
        self.folder = folder
        self.local = LocalRun(Workspace(folder), RUN, self.settings, SystemPlatform(), _say, max_restarts=100)
        self.done: Counter[str] = Counter()
        self.samples = Samples()
        self.gauges: dict[tuple[str, int], dict[str, float]] = {}

    async def run(self) -> dict[str, Any]:
        """Play it; the result."""
        async with self.local.started() as bus, follow(bus, self.local.run_dir) as view:
            begun_s = time.monotonic()
            ended = await self._live(bus, view)
            took_s = time.monotonic() - begun_s
            await view.catch_up(bus)
            write_result(self.local, view)
            report = view.report.to_json()
        audit = await audited(self.folder, RUN)
        sampled, recorded = self._sampled(), recorded_tokens(self.local.run_dir / "archive" / "episodes.jsonl")
        result: dict[str, Any] = {
            "seed": self.seed,
            "minutes": round(took_s / 60, 2),
            "every_s": self.every_s,
            "changes": dict(self.done),
            "ended": ended.reason,
            "steps": report["steps"],
            "audit_ok": audit["ok"],
            "problems": audit["problems"],
            "tokens": {"sampled": sampled, "recorded": recorded, "lost": sampled - recorded},
            "lost_ratio": round((sampled - recorded) / sampled, 5) if sampled else None,
            "handed_over": int(self._counted("driver", "n_handed_over")),
            "moved": int(self._counted("driver", "n_moved")),
            "throughput": self.samples.table(),
            "left_over": await left_over(self.folder, self.local.run_dir),
        }
        return {**result, "failed": missed(result, self.minutes)}

    async def _live(self, bus: Bus, view: View) -> RunEnded:
        limit_s = self.minutes * 60 * MAX_OVERTIME + 300.0
        async with _kept_alive(self.local), asyncio.timeout(limit_s), asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._play(bus), name="schedule"),
                tasks.create_task(self._look(view), name="look"),
            ]
            ended = await self.local.until_ended()
            for task in beside:
                task.cancel()
        return ended

    async def _play(self, bus: Bus) -> None:
        """Change the engines by the schedule, from the time on at which the first one serves."""
        while not self.samples.seconds.get(1):  # noqa: ASYNC110 -- polled beside
            await asyncio.sleep(LOOK_S)
        for change in changes(self.seed, self.every_s):
            await asyncio.sleep(change.after_s)
            engines = membership_of(self.local.run_dir, self.settings).engines
            if change.kind == "add":
                message = AddEngines(n=1)
            else:
                message = RemoveEngines(engines=[engines[change.draw % len(engines)]], now=change.kind == "kill")
            reply = await bus.request(message, key=RUN, timeout_s=30.0)
            assert isinstance(reply, EnginesChanged)
            if reply.error:
                raise RuntimeError(reply.error)
            self.done[change.kind] += 1
            _say(f"{change.kind}: {', '.join(reply.changed)}; the run keeps {', '.join(reply.engines)}")

    async def _look(self, view: View) -> None:
        while True:
            kept = membership_of(self.local.run_dir, self.settings).engines
            latest = view.vitals.latest
            serving = [name for name in kept if name in latest and latest[name].state == "ready"]
            self.samples.take(time.monotonic(), len(serving), self._sampled())
            for name, beat in latest.items():
                self.gauges[name, beat.pid] = beat.gauges
            await asyncio.sleep(LOOK_S)

    def _sampled(self) -> int:
        return tokens_sampled(self.local.run_dir)

    def _counted(self, kind: str, gauge: str) -> float:
        return sum(found.get(gauge, 0.0) for (name, _), found in self.gauges.items() if name.startswith(f"{kind}-"))


@contextlib.asynccontextmanager
async def _kept_alive(local: LocalRun) -> AsyncGenerator[None]:
    actors = asyncio.create_task(local.supervise(), name="supervise")
    try:
        yield
    except BaseException:
        local.supervisor.kill()
        raise
    finally:
        actors.cancel()
        await asyncio.gather(actors, return_exceptions=True)


class _Fact(msgspec.Struct):
    type: str
    versions: list[dict[str, Any]] = []


class _Line(msgspec.Struct):
    facts: list[_Fact]


def recorded_tokens(path: Path) -> int:
    """Tokens that drivers have recorded, of every episode that was archived."""
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as lines:
        return sum(
            run["end"] - run["start"]
            for line in lines
            for fact in decoder.decode(line).facts
            if fact.type == "tokens_generated"
            for run in fact.versions
        )


def missed(result: dict[str, Any], minutes: float) -> list[str]:
    """The bars that a result misses, in words."""
    rates = [row["tokens_per_s"] for row in result["throughput"] if row["engines"] and row["seconds"] >= 10.0]
    bars = [
        (result["ended"] == "completed", f"the run ended with {result['ended']}"),
        (result["audit_ok"], f"the audit found {result['problems']}"),
        (0 <= (result["lost_ratio"] or 0.0) <= MOST_LOST, f"{result['lost_ratio']} of the tokens were lost"),
        (rates == sorted(rates), f"throughput does not follow the engines: {result['throughput']}"),
        (not result["left_over"], f"left over: {result['left_over']}"),
        (result["minutes"] >= 0.5 * minutes, f"the run took {result['minutes']} minutes of {minutes:g}: raise the steps"),
    ]
    return [text for holds, text in bars if not holds]


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=10.0, show_default=True)
@click.option("--every-s", type=click.FloatRange(min=1.0), default=20.0, show_default=True, help="Mean time between two changes.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--step-ms", type=click.FloatRange(min=0.0), default=25.0, show_default=True, help="Added to every engine step.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line.")
def main(minutes: float, every_s: float, seed: int, step_ms: float, as_json: bool) -> None:
    """Train while engines join and leave; exit status 1 if a bar is missed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder = Path(tempfile.mkdtemp(prefix="asearch-elastic-")).resolve()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(Experiment(folder, seed, minutes, every_s, step_ms).run())
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        show(result)
    if result["failed"]:
        _say(f"FAILED: {'; '.join(result['failed'])}; the run's folder: {folder}")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


def show(result: dict[str, Any]) -> None:
    """As text."""
    tokens = result["tokens"]
    click.echo(f"{result['minutes']:.1f} min, {result['steps']} steps, {result['ended']}, audit {result['audit_ok']}")
    click.echo(f"changes: {result['changes']}; handed over {result['handed_over']}, moved {result['moved']}")
    click.echo(f"tokens: {tokens['sampled']:,} sampled, {tokens['lost']:,} lost ({100 * (result['lost_ratio'] or 0):.2f} %)")
    for row in result["throughput"]:
        click.echo(f"{row['engines']} engines: {row['tokens_per_s']:8.1f} tokens/s over {row['seconds']:.0f} s")


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
