"""A real run whose engines are added, removed, preempted and started by hand; and what a supervisor that comes back keeps."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SETTINGS = (
    "warmstart.steps=60",
    "run.groups_per_step=2",
    "run.group_size=4",
    "evaluation.before=false",
    "evaluation.after=false",
)
MORE = (
    "evaluation.before=false",
    "evaluation.after=false",
    "archive.parquet=false",
    "run.max_empty_steps=1000",
    "engine.step_delay_s=0.02",
)


def asearch(root: Path, *arguments: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "actors.cli.main", *arguments, "--runs", str(root)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
    return done.returncode, done.stdout.decode()


def engines(root: Path) -> dict[str, dict[str, Any]]:
    status, text = asearch(root, "engines", "--json")
    return {line["engine"]: line for line in json.loads(text.splitlines()[-1])} if status == 0 else {}


def until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


def states(root: Path) -> dict[str, str]:
    return {name: line["state"] for name, line in engines(root).items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_engines_of_a_live_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = tmp_path / "runs"
    settings = [part for setting in (*SETTINGS, *MORE) for part in ("-s", setting)]
    train = [sys.executable, "-m", "actors.cli.main", "train", "toy", "--runs", str(root), "--run", "r", "--seed", "3", *settings]
    by_hand = [sys.executable, "-m", "actors.cli.main", "actor", "--run", str(root / "r"), "--id", "by-hand", "engine"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (tmp_path / "log").open("wb") as log:
            processes.append(subprocess.Popen([*train, "--steps", "4000"], stdout=log, stderr=log))
            until(lambda: states(root).get("engine-0") == "ready", 300.0)
            assert asearch(root, "engines", "add", "1")[0] == 0
            processes.append(subprocess.Popen(by_hand, stdout=log, stderr=log))
            until(lambda: states(root) == dict.fromkeys(("engine-0", "engine-1", "by-hand"), "ready"))
            assert [line["is_kept"] for line in engines(root).values()] == [True, True, False]
            until(lambda: all(line["tokens_per_s"] for line in engines(root).values()))

            assert asearch(root, "engines", "remove", "engine-0")[0] == 0
            until(lambda: "engine-0" not in states(root))
            processes[1].send_signal(signal.SIGTERM)
            assert processes[1].wait(30.0) == 0
            until(lambda: "by-hand" not in states(root))
            status, text = asearch(root, "status", "--json")
            assert status == 0, text
            assert sorted(name for name in json.loads(text.splitlines()[-1])["actors"] if "engine" in name) == ["engine-1"]

            # A supervisor that is killed takes all processes with it; started again, it keeps what it was left with.
            processes[0].kill()
            processes[0].wait()
            processes.append(subprocess.Popen([*train, "--steps", "4000"], stdout=log, stderr=log))
            until(lambda: states(root) == {"engine-1": "ready"}, 300.0)
            assert asearch(root, "engines", "remove", "1", "--now")[0] == 0
            until(lambda: not states(root))
            assert asearch(root, "engines", "add", "1")[1].startswith("added: engine-2;")
            until(lambda: states(root) == {"engine-2": "ready"})
            assert asearch(root, "down")[0] == 0
        status, text = asearch(root, "audit", "r")
        assert status == 0, text
        reasons = json.loads((root / "r" / "result.json").read_bytes())["reasons"]
        assert "engine_outage" not in reasons["dropped"], reasons
    finally:
        for process in processes:
            process.kill()
            process.wait()
