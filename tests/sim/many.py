"""Many seeds side by side, each in a process of its own, and the table of what really happened in them."""

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from tests.sim.faults import KINDS
from tests.sim.run import Result, run_seed

PROGRESS_EVERY = 25


def run_many(seeds: Iterable[int], workers: int, *, lost_tails: bool = True) -> dict[str, Any]:
    """Play every seed; the table. `never` are the kinds of faults that no seed has met."""
    begun_s = time.perf_counter()
    faults, points, passed = Counter[str](), Counter[str](), Counter[str]()
    failing: dict[int, list[str]] = {}
    n, virtual_ms = 0, 0
    # A process of its own for every seed: what killed lives leave behind goes with it.
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(partial(_played, lost_tails=lost_tails), seeds, chunksize=1):
            if (n + 1) % PROGRESS_EVERY == 0:
                print(f"{n + 1} seeds, {len(failing)} failed", file=sys.stderr, flush=True)
            n, virtual_ms = n + 1, virtual_ms + result.virtual_ms
            faults.update(result.faults)
            points.update(result.fault_points)
            passed.update(result.passed)
            if result.problems:
                failing[result.seed] = result.problems
                print(f"seed {result.seed}: {result.problems[0][:300]}", file=sys.stderr, flush=True)
    real_s = time.perf_counter() - begun_s
    kinds = [kind for kind in KINDS if lost_tails or kind != "lost_tail"]
    return {
        "seeds": n,
        "failed": len(failing),
        "failing_seeds": sorted(failing),
        "faults": {kind: faults[kind] for kind in kinds},
        "never": [kind for kind in kinds if not faults[kind]],
        "fault_points": {name: points[name] for name in sorted(passed)},
        "virtual_s": virtual_ms // 1000,
        "real_s": round(real_s, 1),
        "ratio": round(virtual_ms / 1000 / real_s, 1),
    }


def _played(seed: int, lost_tails: bool) -> Result:
    result = run_seed(seed, lost_tails=lost_tails)
    result.log, result.trace = [], []
    return result
