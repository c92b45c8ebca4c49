"""`asearch world` and `asearch warmstart`, as a user calls them, one after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asearch.data.tasks import load_tasks
from asearch.data.worlds.files import read_manifest
from asearch.models.folder import check_folder

SMALL = ("-s", "warmstart.steps=2", "-s", "warmstart.tokens_per_step=512", "-s", "evaluation.questions=30")


def asearch(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "actors.cli.main", *map(str, arguments)),
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"ASEARCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "wiki"
    sizes = ("--entities", 24, "--relations", 4, "--test-questions", 30, "--train-questions", 90)
    done = asearch(folder, "world", folder, *sizes, "--seed", 9, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["n_articles"], told["n_test"], told["n_train"]) == (96, 30, 90)
    return folder


def test_world_files_are_whole_and_disjoint(world: Path) -> None:
    assert read_manifest(world).spec["seed"] == 9
    train, test = (load_tasks(world / name) for name in ("train.jsonl", "test.jsonl"))
    assert {task.meta["hops"] for task in test} == {"1", "2", "3"}
    assert not {task.question for task in train} & {task.question for task in test}
    assert len(list((world / "pages").glob("*.html"))) == 96


def test_a_world_is_written_anew_over_itself(world: Path) -> None:
    before = read_manifest(world)
    sizes = ("--entities", 24, "--relations", 4, "--test-questions", 30, "--train-questions", 90)
    done = asearch(world, "world", world, *sizes, "--seed", 9)
    assert done.returncode == 0
    assert str(world / "corpus.jsonl") in done.stdout
    assert read_manifest(world) == before


def test_warmstart_makes_a_model_once_and_copies_it_afterwards(world: Path, tmp_path: Path) -> None:
    files = ("--corpus", world / "corpus.jsonl", "--tasks", world / "train.jsonl", "--eval-tasks", world / "test.jsonl")
    first = asearch(tmp_path / "cache", "warmstart", *files, *SMALL, "--out", tmp_path / "a" / "model")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(tmp_path / "a" / "model")
    assert "is a generated world" in first.stderr
    config, tokenizer = check_folder(tmp_path / "a" / "model")
    assert config.architecture == "Qwen3ForCausalLM"
    name = load_tasks(world / "test.jsonl")[0].answers[0]
    assert len(tokenizer.encode(f" {name}")) == 1
    assert tokenizer.decode(tokenizer.encode("ẞ–漢字 \u200b🜂")) == "ẞ–漢字 \u200b🜂"
    second = asearch(tmp_path / "cache", "warmstart", *files, *SMALL, "--out", tmp_path / "b")
    assert second.returncode == 0, second.stderr
    assert "earlier run" in second.stderr
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("a/model", "b")]
    assert weights[0] == weights[1]
