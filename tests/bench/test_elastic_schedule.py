"""The schedule and the table of the elastic bench; one short run of it where time does not matter."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.bench.elastic import LEAST, MOST, Samples, changes, missed


def test_the_schedule_is_a_function_of_the_seed_and_keeps_to_its_bounds() -> None:
    found = list(islice(changes(3, 20.0), 3000))
    assert found == list(islice(changes(3, 20.0), 3000)) != list(islice(changes(4, 20.0), 3000))
    assert 19.0 < sum(change.after_s for change in found) / len(found) < 21.0
    n, seen = 1, set[int]()
    for change in found:
        n += 1 if change.kind == "add" else -1
        seen.add(n)
    assert seen == set(range(LEAST, MOST + 1))
    n_gone = [sum(change.kind == kind for change in found) for kind in ("kill", "remove")]
    assert 0.8 < n_gone[0] / n_gone[1] < 1.25


def test_throughput_counts_where_the_number_of_engines_did_not_change() -> None:
    samples = Samples()
    for now_s, n_engines, n_tokens in ((0, 1, 0), (2, 1, 200), (3, 2, 900), (5, 2, 1700), (5.5, 1, 1800)):
        samples.take(now_s, n_engines, n_tokens)
    assert samples.table() == [
        {"engines": 1, "seconds": 2, "tokens_per_s": 100.0},
        {"engines": 2, "seconds": 2, "tokens_per_s": 400.0},
    ]


def test_every_bar_decides() -> None:
    rows = [{"engines": n, "seconds": 20.0, "tokens_per_s": 100.0 * n} for n in (1, 2, 3)]
    good = {"ended": "completed", "audit_ok": True, "problems": [], "lost_ratio": 0.01, "throughput": rows, "left_over": []}
    good["minutes"] = 9.0
    assert missed(good, 10.0) == []
    spoilt = (
        ("ended", "stopped"),
        ("audit_ok", False),
        ("lost_ratio", 0.011),
        ("throughput", rows[::-1]),
        ("left_over", ["x"]),
        ("minutes", 4.0),
    )
    for name, value in spoilt:
        assert len(missed({**good, name: value}, 10.0)) == 1, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_run_bears_engines_that_come_and_go(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.bench.elastic", "--minutes", "0.7", "--every-s", "8", "--seed", "1", "--json"]
    environment = {**os.environ, "ASEARCH_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, timeout=900, check=False, cwd=Path(__file__).parents[2])
    result = json.loads(done.stdout)
    assert result["ended"] == "completed" and result["audit_ok"] and not result["left_over"], result
    assert result["changes"]["add"] >= 1 and result["tokens"]["sampled"] >= result["tokens"]["recorded"] > 1000
