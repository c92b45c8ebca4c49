"""What 100 subscribers of the page cost: `python -m tests.bench.viewer_subscribers [--windows 12] [--json]`.

Trains for real, and in alternating windows has 100 server-sent-event connections read the run's feed and the feeds of open
episodes, or nobody. Cost is the CPU time of viewer and broker with subscribers less that without, as a share of the CPU time of
the whole run (its actors, engine server, rank, corpus server and broker) without. The connections' own end is not counted.
"""

import argparse
import asyncio
import json
import math
import statistics
import time
from dataclasses import dataclass

import aiohttp
import psutil

from tests.bench.live_run import LiveRun, live_run

N_SUBSCRIBERS = 100
SETTLE_S = 4.0
"""Longer than the viewer follows TRACE after the last subscriber has left."""


@dataclass
class Window:
    """CPU seconds of one window."""

    subscribed: bool
    shown_s: float
    """Of viewer and broker."""
    run_s: float
    """Of the whole run."""
    n_bytes: int


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


def parts(supervisor: psutil.Process, broker: psutil.Process) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Viewer and broker; the whole run."""
    children = supervisor.children(recursive=True)
    viewer = [each for each in children if each.cmdline()[-1:] == ["viewer"]]
    return [*viewer, broker], [each for each in {supervisor, broker, *children} if each.is_running()]


async def read(session: aiohttp.ClientSession, url: str, seen: list[int]) -> None:
    """Read a feed to the end of the window."""
    async with session.get(url) as answer:
        async for chunk in answer.content.iter_any():
            seen[0] += len(chunk)


async def subscribe(url: str, run: str, seconds: float) -> int:
    """Hold N_SUBSCRIBERS connections for a while: half look at the run, half at an open episode each. Returns bytes read."""
    seen = [0]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        async with session.get(f"{url}api/runs/{run}/episodes", params={"stage": "open", "limit": "50"}) as answer:
            episodes = [row["episode"] for row in (await answer.json())["rows"]]
        feeds = [f"{url}api/runs/{run}/episodes/{name}/feed" for name in episodes]
        feeds += [f"{url}api/runs/{run}/feed"] * (N_SUBSCRIBERS - len(feeds))
        tasks = [asyncio.create_task(read(session, feed, seen)) for feed in feeds]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen[0]


def measure(live: LiveRun, windows: int, window_s: float) -> list[Window]:
    """Alternating windows, the first one without subscribers."""
    found: list[Window] = []
    for number in range(2 * windows):
        subscribed = number % 2 == 1
        time.sleep(SETTLE_S)
        shown, whole = parts(live.supervisor, live.broker)
        before = sum(map(cpu_s, shown)), {each: cpu_s(each) for each in whole}
        n_bytes = asyncio.run(subscribe(live.url, live.run, window_s)) if subscribed else time.sleep(window_s) or 0
        shown_s = sum(map(cpu_s, shown)) - before[0]
        run_s = sum(cpu_s(each) - was for each, was in before[1].items() if each.is_running())
        found.append(Window(subscribed, shown_s, run_s, n_bytes))
    return found


def result_of(windows: list[Window]) -> dict[str, object]:
    """Mean cost as a share of the run's CPU time, with a 95 % interval over pairs of neighbouring windows."""
    pairs = list(zip(windows[::2], windows[1::2], strict=True))
    whole_s = statistics.fmean(without.run_s for without, _ in pairs)
    shares = [(with_.shown_s - without.shown_s) / whole_s for without, with_ in pairs]
    half = 2.1 * statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan
    return {
        "subscribers": N_SUBSCRIBERS,
        "windows": len(windows),
        "cost_share": round(statistics.fmean(shares), 4),
        "ci95": [round(statistics.fmean(shares) - half, 4), round(statistics.fmean(shares) + half, 4)],
        "viewer_and_broker_without_s": round(statistics.fmean(w.shown_s for w, _ in pairs), 3),
        "viewer_and_broker_with_s": round(statistics.fmean(w.shown_s for _, w in pairs), 3),
        "run_without_s": round(whole_s, 3),
        "run_with_s": round(statistics.fmean(w.run_s for _, w in pairs), 3),
        "bytes_per_subscriber": round(statistics.fmean(w.n_bytes for _, w in pairs) / N_SUBSCRIBERS),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=12, help="windows of each kind")
    parser.add_argument("--window-s", type=float, default=6.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with live_run() as live:
        windows = measure(live, options.windows, options.window_s)
    result = result_of(windows)
    print(json.dumps(result) if options.json else "\n".join(f"{name:<30} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
