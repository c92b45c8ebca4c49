"""Bad input at the real command line: a non-zero exit and one message that names what is wrong, never a traceback."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.cli.main import main
from asearch.learning.ledger import LedgerSnapshot
from asearch.models.initialise import initialise, small_config
from asearch.models.tokenizer_builder import build_tokenizer
from asearch.training import checkpoints
from tests.cli.left_over import processes_of

PASSAGE = {"id": 1, "contents": '"A bridge"\nThe bridge was built in 1850.'}
TASKS = [{"id": n, "question": f"question number {n}?", "answer": "x"} for n in range(4)]


@dataclass
class Ended:
    status: int
    message: str


Asearch = Callable[..., Ended]


@pytest.fixture
def asearch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Asearch]:
    """Calls the command's entry point as a shell would; anything but an exit fails the test, and so does a process left over."""
    monkeypatch.setenv("ASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["asearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capfd.readouterr()
        text = captured.out + captured.err
        assert "Traceback" not in text
        status = exit_.value.code
        return Ended(status if isinstance(status, int) else 1, text)

    yield call
    assert processes_of(tmp_path) == []


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return lines(tmp_path / "corpus.jsonl", PASSAGE, {"id": 2, "contents": "Something else."})


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return lines(tmp_path / "tasks.jsonl", *TASKS)


# --- settings ---


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("run.stepz=3", ("run.stepz", "did you mean", "steps")),
        ("agent.topp=1", ("agent.topp", "top_p")),
        ("runn.steps=3", ("runn", "did you mean 'run'")),
        ("run.steps=many", ("run.steps", "expected int")),
        ("run.steps=0", ("run.steps", "at least 1")),
        ("run.eta=-1", ("run.eta",)),
        ("run.rule=maks", ("run.rule", "did you mean 'mask'")),
        ("agent.max_turns=0", ("agent.max_turns",)),
        ("agent.name=asearcher", ("asearcher", "asearcher_base")),
        ("rewards.name=f1_fromat", ("f1_fromat", "f1_format")),
        ("trainer.advantage=grppo", ("grppo", "grpo")),
        ("trainer.objective=grppo", ("grppo", "grpo")),
        ("trainer.lr=-1", ("lr", "above 0")),
        ("tools.latency.distribution=gauss", ("tools.latency.distribution",)),
        ("evaluation.questions=0", ("evaluation.questions",)),
        ("model.vocabulary=10", ("model.vocabulary",)),
        ("no-equals-sign", ("table.key=value",)),
    ],
)
def test_a_setting_is_refused_by_its_path(asearch: Asearch, override: str, parts: tuple[str, ...]) -> None:
    ended = asearch("train", "toy", "-s", override)
    assert ended.status == 2
    for part in parts:
        assert part in ended.message


def test_unknown_recipe(asearch: Asearch, tmp_path: Path) -> None:
    ended = asearch("train", "toi")
    assert ended.status == 2
    assert "did you mean 'toy'" in ended.message
    assert "nothing.toml" in asearch("train", "nothing.toml").message
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\nsteps = 3\n")
    ended = asearch("train", broken)
    assert ended.status == 2
    assert "not valid TOML" in ended.message


@pytest.mark.parametrize("name", ["../x", "a b", "-x", "x" * 50])
def test_run_name(asearch: Asearch, name: str) -> None:
    ended = asearch("train", "toy", f"--run={name}")
    assert ended.status == 2
    assert "cannot name a run" in ended.message


# --- corpus and tasks ---


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("not json", "not JSON"),
        ({"id": 2}, "contents"),
        ({"id": 2, "contents": " "}, "empty"),
        ({"id": 1, "contents": "again"}, "already used in line 1"),
        ({"contents": "nameless"}, "neither `id` nor `url`"),
        ('{"id": 2, "contents": 5}', "contents"),
    ],
)
def test_corpus_line(asearch: Asearch, tmp_path: Path, tasks: Path, row: object, part: str) -> None:
    corpus = lines(tmp_path / "broken.jsonl", PASSAGE, row)
    ended = asearch("train", "toy", "--corpus", corpus, "--tasks", tasks)
    assert ended.status == 2
    assert "broken.jsonl:2" in ended.message
    assert part in ended.message


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("{", "not JSON"),
        ({"id": 9, "question": "who?"}, "no `answer`"),
        ({"id": 9, "question": "who?", "answer": []}, "no `answer`"),
        ({"id": 9, "answer": "x"}, "question"),
        ({"id": 0, "question": "who?", "answer": "x"}, "already used in line 1"),
        ({"id": 9, "question": "long " * 1000, "answer": "x"}, "characters"),
        ({"id": 9, "question": "unheard-of-word " * 120, "answer": "x"}, "tokens"),
    ],
)
def test_tasks_line(asearch: Asearch, tmp_path: Path, corpus: Path, row: object, part: str) -> None:
    tasks = lines(tmp_path / "broken.jsonl", *TASKS, row)
    ended = asearch("train", "toy", "--corpus", corpus, "--tasks", tasks)
    assert ended.status == 2
    assert "broken.jsonl:5" in ended.message
    assert part in ended.message


def test_over_long_question_for_evaluation(asearch: Asearch, tmp_path: Path, corpus: Path, tasks: Path) -> None:
    long = lines(tmp_path / "long.jsonl", {"id": "e", "question": "unheard-of-word " * 120, "answer": "x"})
    ended = asearch("train", "toy", "--corpus", corpus, "--tasks", tasks, "--eval-tasks", long)
    assert ended.status == 2
    assert "long.jsonl:1" in ended.message


@pytest.mark.parametrize("missing", ["--corpus", "--tasks", "--eval-tasks", "--pages"])
def test_missing_file(asearch: Asearch, tmp_path: Path, corpus: Path, tasks: Path, missing: str) -> None:
    options: dict[str, Path] = {"--corpus": corpus, "--tasks": tasks, missing: tmp_path / "absent.jsonl"}
    ended = asearch("train", "toy", *[part for option in options.items() for part in option])
    assert ended.status == 2
    assert "absent.jsonl cannot be read" in ended.message


@pytest.mark.parametrize("given", ["--corpus", "--tasks", "--eval-tasks", "--pages"])
def test_inputs_go_together(asearch: Asearch, tmp_path: Path, corpus: Path, tasks: Path, given: str) -> None:
    files = {"--corpus": corpus, "--pages": corpus}
    ended = asearch("train", "toy", given, files.get(given, tasks))
    assert ended.status == 2
    assert "--corpus" in ended.message or "--tasks" in ended.message


@pytest.mark.parametrize(
    ("empty", "part"), [("--corpus", "holds no passages"), ("--tasks", "holds no tasks"), ("--eval-tasks", "holds no tasks")]
)
def test_empty_file(asearch: Asearch, tmp_path: Path, corpus: Path, tasks: Path, empty: str, part: str) -> None:
    options: dict[str, Path] = {"--corpus": corpus, "--tasks": tasks, empty: lines(tmp_path / "empty.jsonl")}
    ended = asearch("train", "toy", *[part for option in options.items() for part in option])
    assert ended.status == 2
    assert f"empty.jsonl {part}" in ended.message


def test_one_question_cannot_be_split(asearch: Asearch, tmp_path: Path, corpus: Path) -> None:
    ended = asearch("train", "toy", "--corpus", corpus, "--tasks", lines(tmp_path / "one.jsonl", TASKS[0]))
    assert ended.status == 2
    assert "held out" in ended.message


# --- model folders ---


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(["a few words"], 400)
    initialise(folder, tokenizer, small_config(tokenizer, n_layers=1, hidden_size=16, n_heads=2, n_kv_heads=2, head_dim=8), 0)
    return folder


def changed_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda folder: changed_config(folder, architectures=["MistralForCausalLM"]), "MistralForCausalLM"),
        (lambda folder: changed_config(folder, use_sliding_window=True), "sliding-window"),
        (lambda folder: changed_config(folder, intermediate_size=999), "down_proj.weight is [16, 128]"),
        (lambda folder: changed_config(folder, vocab_size=9), "tokens"),
        (lambda folder: changed_config(folder, max_position_embeddings=64), "max_context_tokens"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a JSON object"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: _truncate(folder / "model.safetensors"), "cannot read weights"),
        (lambda folder: shutil.rmtree(folder), "no model folder"),
    ],
)
def test_model_folder(asearch: Asearch, tmp_path: Path, small_model: Path, spoil: Callable[[Path], object], part: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    spoil(folder)
    ended = asearch("train", "toy", "--model", folder)
    assert ended.status == 2
    assert part in ended.message


# --- ports, runs, checkpoints ---


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def test_taken_port(asearch: Asearch, taken_port: int) -> None:
    ended = asearch("train", "toy", "--port", taken_port)
    assert ended.status != 0
    assert f"port {taken_port}" in ended.message
    assert "taken" in ended.message
    assert asearch("train", "toy", "--port", 99999).status == 2


def _checkpoint(folder: Path) -> Path:
    aside = checkpoints.begin(folder, 1, 3)
    (aside / "weights").write_bytes(b"some weights")
    ledger = LedgerSnapshot(step=3, watermark=1, counted=[], discarded={}, ungraded=[])
    files = {"weights": checkpoints.entry_of(aside / "weights")}
    manifest = checkpoints.Manifest(lineage=1, step=3, recipe_hash="", ledger=ledger, files=files)
    checkpoints.write_manifest(aside, manifest)
    return checkpoints.put_in_place(aside)


@pytest.mark.parametrize("spoil", ["changed", "missing", "manifest"])
def test_corrupt_checkpoint(asearch: Asearch, tmp_path: Path, spoil: str) -> None:
    folder = _checkpoint(tmp_path / "runs" / "mine" / "checkpoints")
    if spoil == "changed":
        (folder / "weights").write_bytes(b"other bytes!")
    elif spoil == "missing":
        (folder / "weights").unlink()
    else:
        (folder / checkpoints.MANIFEST).write_text('{"lineage": 1')
    ended = asearch("train", "toy", "--run", "mine")
    assert ended.status == 1
    assert str(folder) in ended.message


def test_commands_about_runs_that_do_not_exist(asearch: Asearch) -> None:
    assert "no run 'none'" in asearch("audit", "none").message
    assert asearch("status", "--run", "none").status == 2
    assert asearch("status").status == 3


# --- world, warmstart, bench ---


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--entities", 8, "--relations", 3), "too few for 100 test questions"),
        (("--entities", 2), "8..4096 entities"),
        (("--relations", 99), "relations, not 99"),
        (("--entities", "many"), "--entities"),
        (("--test-questions", 0), "--test-questions"),
    ],
)
def test_world_options(asearch: Asearch, tmp_path: Path, options: tuple[object, ...], part: str) -> None:
    ended = asearch("world", tmp_path / "world", *options)
    assert ended.status == 2
    assert part in ended.message
    assert not (tmp_path / "world").exists()


def test_folders_that_hold_something_else(asearch: Asearch, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    lines(used / "notes.txt", "mine")
    for command in (("world", used), ("warmstart", "--out", used), ("bench", "async", "--keep", used)):
        ended = asearch(*command)
        assert ended.status == 2
        assert str(used) in ended.message
    assert (used / "notes.txt").read_text() == "mine\n"


def test_the_installed_command_says_one_line() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "actors.cli.main", "train", "toy", "-s", "run.stepz=3"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == "error: unknown setting 'run.stepz'; did you mean 'steps'?"
