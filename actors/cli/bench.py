"""`asearch bench NAME`: benchmarks of the whole system on this machine."""

import asyncio
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from actors.bench.async_speedup import Load, compare
from actors.cli.train import stop_signals
from actors.runtime.platform import SystemPlatform
from asearch.errors import InputError


@click.group("bench")
def bench() -> None:
    """Measure the whole system on this machine."""


@bench.command("async")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of world, model, sampling and latencies.")
@click.option("--steps", type=click.IntRange(min=2), default=Load.steps, show_default=True, help="Policy updates of each arm.")
@click.option("--mean-s", type=float, default=Load.mean_s, show_default=True, help="Mean latency of a tool call, uncapped.")
@click.option("--cap-s", type=float, default=Load.cap_s, show_default=True, help="Largest latency of a tool call.")
@click.option("--keep", type=click.Path(path_type=Path), help="New folder in which both runs are left.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line at the end.")
def async_(seed: int, steps: int, mean_s: float, cap_s: float, keep: Path | None, as_json: bool) -> None:
    """Asynchronous (eta 4) against synchronous (eta 0) training with the same heavy-tailed tool latencies.

    Each arm stands beside its bound. Synchronous: the sum over steps of the longest episode and the update. Asynchronous: the
    larger of generation (episode seconds over the episodes that may be open at once) and training.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise InputError(f"{keep} exists and is not empty: give --keep a new folder")
    load = Load(steps=steps, mean_s=mean_s, cap_s=cap_s)
    with tempfile.TemporaryDirectory(prefix="asearch-bench-") as aside:
        folder = keep.resolve() if keep is not None else Path(aside)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(_until_signal(compare(load, seed, folder, SystemPlatform(), _say)))
    if result is None:
        _say("interrupted: every process of the benchmark was stopped")
        sys.exit(130)
    _say(_summary(result))
    if as_json:
        click.echo(msgspec.json.encode(result).decode())


async def _until_signal(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any] | None:
    """The result of the work, None if a signal ended it: the first stops everything in order, the next kills."""
    task = asyncio.create_task(work, name="bench")
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


def _summary(result: dict[str, Any]) -> str:
    lines = [f"speedup {result['speedup']:.2f} (eta {result['async']['eta']} against 0)"]
    for name in ("sync", "async"):
        arm = result[name]
        lines.append(
            f"  {name:<6} {arm['steps']} steps in {arm['wall_s']:.1f} s; bound {arm['bound_s']:.1f} s "
            f"({arm['efficiency']:.0%}); updates {arm['trainer_s']:.1f} s; {arm['tool_calls']} tool calls"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    click.echo(text, err=True)
