"""`just chaos` = `python -m tests.chaos`: a seeded schedule of faults over a real training run, and the verdict.

Exit status: 0 all bars hold, 1 one is missed or the run did not recover, 130 interrupted. A schedule is a function of the seed;
where in the run a fault comes is not, since the processes are real.
"""

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog
import uvloop

from asearch.errors import AsearchError
from tests.chaos.chaos import chaos
from tests.chaos.injection import ChaosError
from tests.chaos.scale import CHOSEN, FULL, SMOKE, Scale
from tests.chaos.schedule import KINDS, Fault, schedule
from tests.chaos.victims import NoVictimError


@click.command()
@click.option("--faults", "n_faults", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the schedule and of the run.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only these kinds; may be repeated.")
@click.option("--small", is_flag=True, help="A run too small to learn: for a quick look. Bars of learning are left out.")
@click.option("--engines", "n_engines", type=click.IntRange(1, 8), help="How many engines; 2 unless given, 1 in a small run.")
@click.option("--keep", type=click.Path(path_type=Path), help="New folder in which the run is left.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON line at the end.")
def main(
    n_faults: int, seed: int, kinds: tuple[str, ...], small: bool, n_engines: int | None, keep: Path | None, as_json: bool
) -> None:
    """Kill, stop and restart the processes of a training run while it trains; nothing may be lost or counted twice.

    With chosen kinds the run need not learn: its evaluations are short. Where only ranks, engines and servers are killed, bars on
    the tokens generated again and on the trainer's idle time hold too.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise click.UsageError(f"{keep} exists and is not empty: give --keep a new folder")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    scale = SMOKE if small else (CHOSEN if kinds else FULL)
    scale = replace(scale, n_engines=n_engines) if n_engines else scale
    counts = {"driver": 2, "engine": scale.n_engines, "server": scale.n_engines}
    faults = schedule(seed, n_faults, scale.lease_s, counts, kinds or KINDS)
    folder = (keep or Path(tempfile.mkdtemp(prefix="asearch-chaos-"))).resolve()
    begun_s = time.monotonic()
    result = _run(folder, scale, seed, faults)
    _say(f"{time.monotonic() - begun_s:.0f} s")
    if as_json and result is not None:
        click.echo(msgspec.json.encode(result).decode())
    ok = result is not None and result["ok"]
    if ok and keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _say(f"the run's folder: {folder}")
    if not ok:
        for line in result["failed"] if result else ():
            _say(f"FAILED: {line}")
        engines = f" --engines {n_engines}" if n_engines else ""
        chosen = "".join(f" --kind {kind}" for kind in kinds)
        _say(f"again: python -m tests.chaos --faults {n_faults} --seed {seed}{chosen}{' --small' if small else ''}{engines}")
        sys.exit(1)


def _run(folder: Path, scale: Scale, seed: int, faults: list[Fault]) -> dict[str, Any] | None:
    """The verdict; None if the run failed. Exits when interrupted."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_until_signal(folder, scale, seed, faults))
        except asyncio.CancelledError:
            _say(f"interrupted: every process was stopped; the run's folder: {folder}")
            sys.exit(130)
        except (ChaosError, NoVictimError, AsearchError) as error:
            _say(f"FAILED: {error}")
            return None


async def _until_signal(folder: Path, scale: Scale, seed: int, faults: list[Fault]) -> dict[str, Any]:
    task = asyncio.create_task(chaos(folder, scale, seed, faults, _say), name="chaos")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
