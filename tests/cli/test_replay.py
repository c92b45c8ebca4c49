"""`asearch replay` and `asearch regrade` on a real run that has ended."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from actors.cli.main import cli
from actors.runtime.run_files import RunFile, read_run_file, write_run_file
from asearch.errors import AsearchError
from schemas.archive import ArchivedEpisode
from schemas.events import ToolRequested
from tests.cli.engine_process import running_engine

SMALL = {
    "run.groups_per_step": 2,
    "run.group_size": 2,
    "evaluation.questions": 6,
    "evaluation.before": "false",
    "warmstart.steps": 40,
    "warmstart.demonstrations": 400,
    "warmstart.complete_demonstrations": 100,
    "warmstart.cache": "false",
}
RUN = "r"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run: warm start, one update, an evaluation."""
    root = tmp_path_factory.mktemp("runs")
    settings = [word for name, value in SMALL.items() for word in ("-s", f"{name}={value}")]
    command = [sys.executable, "-m", "actors.cli.main", "train", "toy", "--runs", str(root), "--run", RUN]
    done = subprocess.run([*command, "--seed", "3", "--steps", "1", *settings, "--json"], capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return root


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, AsearchError), result.exception
        result.exit_code = result.exception.exit_code
    return result


def told(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout.splitlines()[-1])


def episodes(root: Path) -> list[ArchivedEpisode]:
    lines = (root / RUN / "archive" / "episodes.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ArchivedEpisode) for line in lines]


def copied(root: Path, target: Path) -> Path:
    """The run's archive without the broker's store, in a folder of its own."""
    shutil.copytree(root / RUN / "archive", target / RUN / "archive")
    content = read_run_file(root / RUN)
    write_run_file(target / RUN, content)
    return target


def test_every_episode_of_a_finished_run_is_identical(runs: Path) -> None:
    result = invoke("replay", "--all", RUN, "--runs", runs, "--json")
    tally = told(result)
    n = len(episodes(runs))
    assert result.exit_code == 0, tally
    assert (tally["episodes"], tally["identical"], tally["different"], tally["partial"]) == (n, n, 0, 0)
    assert (tally["graded_again"], tally["differences"]) == (n, [])
    requested = sum(json.loads((runs / RUN / "result.json").read_text())["accounting"][name] for name in ("graded", "dropped"))
    assert n == requested


def test_one_episode(runs: Path) -> None:
    name = episodes(runs)[0].episode
    result = invoke("replay", name, "--run", RUN, "--runs", runs)
    assert (result.exit_code, result.stdout.startswith(f"{name}: identical, its reward too")) == (0, True)
    assert invoke("replay", f"{name}9", "--run", RUN, "--runs", runs).exit_code == 2
    assert invoke("replay", "--all", "other", "--runs", runs).exit_code == 2
    assert invoke("replay", "--runs", runs).exit_code == 2


def test_a_changed_byte_is_named_wherever_it_is(runs: Path, tmp_path: Path) -> None:
    root = copied(runs, tmp_path)
    folder, chance = root / RUN / "archive", random.Random(7)
    assert invoke("replay", "--all", RUN, "--runs", root).exit_code == 0
    for name in ("episodes.jsonl", "outcomes.jsonl"):
        whole = (folder / name).read_bytes()
        for _ in range(6):
            changed = bytearray(whole)
            changed[chance.randrange(len(whole) - 1)] ^= 1 << chance.randrange(8)
            (folder / name).write_bytes(changed)
            result = invoke("replay", "--all", RUN, "--runs", root, "--json")
            differences = told(result)["differences"]
            assert result.exit_code == 1
            assert all(each["episode"] or each["id"].startswith(name) for each in differences)
        (folder / name).write_bytes(whole)
    for blob in list((folder / "blobs").iterdir())[:1]:
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        result = invoke("replay", "--all", RUN, "--runs", root, "--json")
        assert (result.exit_code, blob.name in result.stdout) == (1, True)


def test_a_changed_fact_of_one_episode(runs: Path, tmp_path: Path) -> None:
    root = copied(runs, tmp_path)
    path = root / RUN / "archive" / "episodes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    place, entry = next((n, each) for n, each in enumerate(episodes(runs)) if len(each.facts) > 2)
    finished = entry.facts[-1]
    assert b'"n_turns":' in lines[place]
    at = lines[place].index(b'"n_turns":') + len(b'"n_turns":')
    digit = b"8" if lines[place][at : at + 1] != b"8" else b"7"
    lines[place] = lines[place][:at] + digit + lines[place][at + 1 :]
    path.write_bytes(b"".join(lines))
    result = invoke("replay", entry.episode, "--run", RUN, "--runs", root, "--json")
    verdict = told(result)
    assert (result.exit_code, verdict["identical"]) == (1, False)
    named = {(each["fact"], each["type"], each["id"], each["field"]) for each in verdict["differences"]}
    fact = (len(entry.facts) - 1, "episode_finished", finished.id)
    outcome = (None, "outcome", entry.outcome.id)
    # The outcome comes before the facts in a line or after them: one of the two was changed.
    assert {(*fact, "bytes"), (*fact, "n_turns")} <= named or {"bytes", "n_turns"} <= {
        each["field"] for each in verdict["differences"] if each["type"] == outcome[1]
    }
    others = told(invoke("replay", "--all", RUN, "--runs", root, "--json"))
    assert (others["different"], others["identical"]) == (1, len(lines) - 1)


def test_a_changed_name_of_a_line_is_no_other_episode(runs: Path, tmp_path: Path) -> None:
    root = copied(runs, tmp_path)
    path = root / RUN / "archive" / "episodes.jsonl"
    whole, name = path.read_bytes(), episodes(runs)[0].episode
    path.write_bytes(whole.replace(b'{"episode":"' + name.encode(), b'{"episode":"z' + name.encode()[1:], 1))
    tally = told(invoke("replay", "--all", RUN, "--runs", root, "--json"))
    assert (tally["episodes"], tally["different"]) == (len(episodes(runs)), 1)
    assert {each["episode"] for each in tally["differences"]} == {name}
    path.write_bytes(whole[: whole.index(b"\n") + 1] + whole)
    assert "an earlier line has it" in invoke("replay", "--all", RUN, "--runs", root).stdout
    path.write_bytes(whole[whole.index(b"\n") + 1 :])
    gone = told(invoke("replay", "--all", RUN, "--runs", root, "--json"))
    assert [(each["episode"], each["type"]) for each in gone["differences"]] == [(name, "episode")]


def test_without_the_brokers_store_nothing_can_be_graded(runs: Path, tmp_path: Path) -> None:
    root = copied(runs, tmp_path)
    assert told(invoke("replay", "--all", RUN, "--runs", root, "--json"))["graded_again"] == 0
    assert invoke("regrade", RUN, "--runs", root).exit_code == 2


def test_regrading_with_the_same_reward_changes_nothing(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.jsonl"
    summary = told(invoke("regrade", RUN, "--runs", runs, "--out", out, "--json"))
    rows = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert (summary["episodes"], summary["changed"], summary["sign_flips"]) == (len(rows), 0, 0)
    assert [row["old_reward"] for row in rows] == [row["new_reward"] for row in rows]
    assert {row["episode"] for row in rows} == {entry.episode for entry in episodes(runs)}


def test_regrading_with_another_reward(runs: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "em.parquet"
    result = invoke("regrade", RUN, "--grader", "cem_text", "--runs", runs, "--out", out, "--json")
    summary, rows = told(result), pq.read_table(out).to_pylist()
    assert result.exit_code == 0
    assert summary["grader"] == "cem_text"
    assert len(rows) == summary["episodes"] == len(episodes(runs))
    assert {item["name"] for row in rows for item in row["new_items"]} == {"cem_text"}
    mean = sum(row["new_reward"] for row in rows) / len(rows)
    assert summary["mean_new_reward"] == pytest.approx(mean)
    assert invoke("regrade", RUN, "--grader", "emm", "--runs", runs).exit_code == 2
    assert invoke("regrade", RUN, "-s", "agent.temperature=1", "--runs", runs).exit_code == 2
    name = rows[0]["episode"]
    again = told(invoke("replay", name, "--run", RUN, "--grader", "cem_text", "--runs", runs, "--json"))
    assert (again["grader"], again["new_reward"]) == ("cem_text", rows[0]["new_reward"])


def test_going_on_from_a_turn_with_the_recorded_policy_and_another(runs: Path) -> None:
    content: RunFile = read_run_file(runs / RUN)
    entry = max(episodes(runs), key=lambda each: sum(isinstance(fact, ToolRequested) for fact in each.facts))
    before = [path.read_bytes() for path in sorted((runs / RUN / "archive").glob("*.jsonl"))]
    options = ("--run", RUN, "--runs", runs, "--from-turn", 0)
    with running_engine(Path(content.model_dir), "7.7") as url:
        greedy = ("-s", "agent.temperature=0", "-s", "agent.eval_temperature=0")
        first = told(invoke("replay", entry.episode, *options, "--engine", url, *greedy, "--json"))
        again = told(invoke("replay", entry.episode, *options, "--engine", url, *greedy, "--seed", 5, "--json"))
        text = invoke("replay", entry.episode, *options, "--engine", url, "-s", "agent.temperature=2.0")
        assert invoke("replay", entry.episode, *options[:-1], 99, "--engine", url).exit_code == 2
    assert first["weights"] == "7.7"
    assert first["continued"]["turns"]
    assert {version for turn in first["continued"]["turns"] for version in turn["versions"]} == {"7.7"}
    assert first["continued"]["status"] in ("answered", "forced", "ended", "malformed", "exhausted")
    assert first["continued"]["reward"] is not None
    assert first["continued"] == again["continued"], "greedy decoding follows no seed"
    assert len(first["recorded"]["turns"]) == first["recorded"]["n_turns"]
    assert (text.exit_code, "recorded  " in text.stdout) == (0, True)
    assert invoke("replay", entry.episode, *options, "--engine", url).exit_code == 1, "nothing answers there any more"
    assert [path.read_bytes() for path in sorted((runs / RUN / "archive").glob("*.jsonl"))] == before
    assert invoke("replay", "--all", RUN, "--runs", runs).exit_code == 0


def test_commands_leave_no_broker_behind(runs: Path) -> None:
    assert not (runs / ".broker" / "broker.json").exists()
