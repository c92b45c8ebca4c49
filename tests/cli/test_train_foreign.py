"""The real command, end to end, on files that nobody made for it: a policy that knows next to nothing never scores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.foreign_files import write_foreign
from tests.cli.left_over import processes_of

ASEARCH = (sys.executable, "-m", "actors.cli.main")
SMALL = (
    *("warmstart.steps=6", "warmstart.tokens_per_step=512", "run.groups_per_step=2", "run.group_size=2"),
    *("evaluation.questions=6", "checkpoint.every_steps=2"),
)


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ASEARCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run((*ASEARCH, *arguments), capture_output=True, text=True, timeout=240, env=environment, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("foreign")
    corpus, tasks = write_foreign(folder)
    options = [part for setting in SMALL for part in ("-s", setting)]
    files = ("--corpus", str(corpus), "--tasks", str(tasks))
    place = ("--runs", str(folder / "runs"), "--run", "theirs")
    done = run("train", "toy", *files, *place, "--steps", "5", "--seed", "1", "--json", *options, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_run_completes_with_every_step(trained: tuple[Path, dict[str, Any]]) -> None:
    _, result = trained
    assert result["ended"] == "completed"
    assert result["steps"] == 5
    assert result["policy_version"].endswith(".5")
    assert result["eval"]["before"]["n"] == result["eval"]["after"]["n"] == 6
    assert result["tokens"]["generated"] > 0


def test_identities_hold(trained: tuple[Path, dict[str, Any]]) -> None:
    _, result = trained
    terms = result["accounting"]
    assert terms["requested"] == terms["graded"] + terms["dropped"] + terms["dead"] + terms["in_flight"]
    assert terms["graded"] == terms["counted"] + terms["discarded"] + terms["queued"]
    assert terms["in_flight"] == 0
    assert result["identities_broken"] == []
    assert sum(result["reasons"]["dropped"].values()) == terms["dropped"]
    assert result["staleness"]["max"] <= result["eta"]


def test_audit_agrees(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, result = trained
    done = run("audit", "theirs", "--runs", str(folder / "runs"), "--json", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["accounting"] == result["accounting"]


def test_nothing_is_left_running(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    assert processes_of(folder) == []


def test_held_out_questions_are_not_trained(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    data = folder / "runs" / "theirs" / "data"
    train, test = (
        {json.loads(line)["question"] for line in (data / name).read_text().splitlines()}
        for name in ("train.jsonl", "test.jsonl")
    )
    assert train and len(test) == 6
    assert not train & test
