"""`asearch train toy --engine sglang`: the same result as with the embedded engine, from real SGLang servers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1200)]
SMALL = {
    "warmstart.steps": 60,
    "warmstart.tokens_per_step": 1024,
    "run.groups_per_step": 4,
    "run.group_size": 4,
    "run.max_empty_steps": 20,
    "evaluation.questions": 20,
    "world.entities": 24,
    "world.relations": 4,
}
KINDS = ("embedded", "sglang")


def trained(folder: Path, kind: str) -> dict[str, Any]:
    """The JSON of a small run."""
    environment = os.environ | {"ASEARCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "actors.cli.main", "train", "toy", "--engine", kind, "--run", kind, "--runs", str(folder)]
    settings = [word for name, value in SMALL.items() for word in ("-s", f"{name}={value}")]
    done = subprocess.run([*command, "--seed", "3", "--steps", "5", *settings, "--json"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    if kind == "sglang":
        assert "engine-0 waits for the inference server, for" in done.stderr.decode()
    return msgspec.json.decode(done.stdout.splitlines()[-1])


def paths(value: object, path: str = "") -> set[str]:
    """Every key, with those above it; lists and tables keyed by data count as one."""
    if not isinstance(value, dict):
        return {path}
    keyed_by_data = any(not str(key).isidentifier() for key in value)
    return {path} if keyed_by_data else {path}.union(*(paths(inner, f"{path}.{key}") for key, inner in value.items()))


def test_the_result_is_that_of_the_embedded_engine(tmp_path: Path) -> None:
    embedded, real = (trained(tmp_path, kind) for kind in KINDS)
    assert paths(real) == paths(embedded)
    assert real["ended"] == "completed"
    # Both kinds of servers count what they sample; nothing was lost.
    for each in (embedded, real):
        recorded = each["tokens"]["generated"] + each["tokens"]["evaluation"]
        assert recorded <= each["tokens_sampled"] <= 1.02 * recorded
    # Greedy evaluation of the same warm start: the same tokens but for ties in the last digits.
    for key in ("n", "accuracy", "searches_per_episode", "tokens_per_episode"):
        assert real["eval"]["before"][key] == pytest.approx(embedded["eval"]["before"][key], rel=0.05, abs=0.06)
    audit = [sys.executable, "-m", "actors.cli.main", "audit", "sglang", "--runs", str(tmp_path), "--json"]
    done = subprocess.run(audit, capture_output=True)
    found = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert found["ok"], found["problems"]
    terms = found["accounting"]
    assert terms["requested"] == terms["graded"] + terms["dropped"] + terms["dead"] > 0
    assert terms["in_flight"] == 0
