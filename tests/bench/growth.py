"""What grows in a live run: `python -m tests.bench.growth --run runs/NAME [--every 10] [--seconds 3600]`.

Samples bytes and first sequences of the streams, bytes of archive, checkpoints and published weights, and the resident memory
of every actor; one JSON line a sample on stderr. At the end, or on Ctrl-C, one JSON line on stdout: the last sample, and for
each number its growth per hour and per policy step, by least squares over the second half of the samples.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from actors.runtime.bus import Bus
from actors.runtime.following import View, follow
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, read_run_file
from actors.runtime.workspace import is_live
from schemas.topology import TOPOLOGY

Sample = dict[str, float]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


async def sample(bus: Bus, view: View, run_dir: Path, content: RunFile, seconds: float) -> Sample:
    """All numbers at this moment."""
    found: Sample = {"seconds": round(seconds, 1), "steps": len(view.report.journal.steps)}
    for stream in TOPOLOGY.streams:
        info = await bus.stream_info(stream.name)
        found[f"{stream.name}_bytes"], found[f"{stream.name}_messages"] = info.n_bytes, info.n_messages
        found[f"{stream.name}_last"] = info.last_sequence
    for name in ("archive", "checkpoints", "logs"):
        found[f"{name}_bytes"] = folder_bytes(run_dir / name)
    found["weights_bytes"] = folder_bytes(Path(content.weights_dir))
    for actor, heartbeat in sorted(view.vitals.latest.items()):
        found[f"rss_{actor}"] = resident_bytes(heartbeat.pid)
    return found


def slope(samples: Sequence[Sample], name: str, by: str) -> float | None:
    """Growth of a number per unit of another, by least squares; None where the other does not change."""
    points = [(each[by], each[name]) for each in samples if name in each]
    if len(points) < 2:
        return None
    x, y = fmean(point[0] for point in points), fmean(point[1] for point in points)
    spread = sum((point[0] - x) ** 2 for point in points)
    return sum((point[0] - x) * (point[1] - y) for point in points) / spread if spread else None


def summary(samples: Sequence[Sample]) -> dict[str, object]:
    """The last sample and the slopes over the second half."""
    half = samples[len(samples) // 2 :]
    names = [name for name in samples[-1] if name not in ("seconds", "steps")]
    per_second = {name: slope(half, name, "seconds") for name in names}
    return {
        "n_samples": len(samples),
        "last": samples[-1],
        "per_hour": {name: None if value is None else round(value * 3600, 1) for name, value in per_second.items()},
        "per_step": {name: None if (v := slope(half, name, "steps")) is None else round(v, 1) for name in names},
    }


async def watch(run_dir: Path, every_s: float, seconds: float) -> list[Sample]:
    """Sample a run until it is over, the time is, or somebody interrupts."""
    platform, content = SystemPlatform(), read_run_file(run_dir)
    begun_s = platform.monotonic()
    samples: list[Sample] = []
    bus = await connect(content.broker_url, content.run, f"growth-{platform.new_id()[:6]}", platform)
    try:
        async with follow(bus, run_dir) as view:
            while is_live(content) and (passed_s := platform.monotonic() - begun_s) < seconds:
                await platform.sleep(every_s if samples else min(every_s, 3.0))
                samples.append(await sample(bus, view, run_dir, content, passed_s))
                print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    except asyncio.CancelledError:
        pass
    finally:
        await bus.close()
    return samples


def main() -> None:
    """Read the command line, sample, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--seconds", type=float, default=86400.0, help="at most so long")
    options = parser.parse_args()
    samples = asyncio.run(watch(options.run, options.every, options.seconds))
    print(json.dumps(summary(samples) if samples else {"n_samples": 0}))


if __name__ == "__main__":
    main()
