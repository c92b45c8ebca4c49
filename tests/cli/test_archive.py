"""Parquet files and data sets of real runs: totals, exactness, and a run that was killed as a whole."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner, Result

from actors.cli.archive import archive as archive_command
from actors.cli.behaviour import behaviour as behaviour_command
from actors.cli.dataset import dataset as dataset_command
from actors.runtime.episode_lines import decode_episode, encode_episode
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import open_run
from actors.runtime.workspace import Workspace
from asearch.errors import AsearchError
from asearch.models.tokenizer import Tokenizer
from schemas.codec import decode_trajectory
from schemas.events import EpisodeGraded
from schemas.records import Reward, Segment
from tests.cli.left_over import remove_weights

TRAIN = (sys.executable, "-m", "actors.cli.main", "train", "toy", "--seed", "3", "--json")
SMALL = (
    *(
        "warmstart.steps=30",
        "warmstart.tokens_per_step=1024",
        "run.groups_per_step=3",
        "run.group_size=4",
        "run.max_refills=1",
        "run.max_groups_in_flight=6",
    ),
    *("evaluation.questions=6", "viewer.enabled=false"),
)
TABLES = ("episodes", "turns", "segments", "steps")


def command(runs: Path, run: str, steps: int) -> list[str]:
    settings = [part for setting in (*SMALL, f"run.steps={steps}") for part in ("-s", setting)]
    return [*TRAIN, "--runs", str(runs), "--run", run, *settings]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"ASEARCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archived")


@pytest.fixture(scope="module")
def ended(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the runs, and the result of a run that ended."""
    done = subprocess.run(
        command(folder / "runs", "small", 2), capture_output=True, text=True, timeout=240, env=environment(folder), check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs", json.loads(done.stdout.splitlines()[-1])


def table(run_dir: Path, name: str) -> pd.DataFrame:
    """As a user reads it."""
    parts = sorted(run_dir.glob(f"{name}*.parquet"))
    assert parts
    return pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)


def invoke(which: Any, *arguments: str) -> Result:
    return CliRunner().invoke(which, arguments, catch_exceptions=True)


def terms_of(frame: pd.DataFrame) -> dict[str, int]:
    outcomes, fates = Counter(frame.outcome), Counter(frame.fate)
    found = {name: outcomes[name] for name in ("graded", "dropped", "dead")}
    return found | {name: fates[name] for name in ("counted", "discarded", "queued")}


# --- a run that ended -------------------------------------------------------------------------------------------------


def test_recorder_has_written_totals_that_equal_the_accounting(ended: tuple[Path, dict[str, Any]]) -> None:
    runs, result = ended
    episodes = table(runs / "small", "episodes")
    said = result["accounting"]
    assert said["in_flight"] == 0
    assert len(episodes) == said["requested"] > 20
    assert terms_of(episodes) == {name: said[name] for name in terms_of(episodes)}
    for purpose, terms in result["accounting_by_purpose"].items():
        of_purpose = episodes[episodes.purpose == purpose]
        assert len(of_purpose) == terms["requested"]
        assert terms_of(of_purpose) == {name: terms[name] for name in terms_of(of_purpose)}
    assert episodes.episode.is_unique
    assert Counter(episodes[episodes.fate == "discarded"].reason) == Counter(result["reasons"]["discarded"])
    after = episodes[(episodes.label == "after") & (episodes.outcome == "graded")]
    assert round(after.correct.mean(), 4) == result["eval"]["after"]["accuracy"]
    assert round(after.n_tokens.mean(), 4) == result["eval"]["after"]["tokens_per_episode"]


def test_turns_segments_and_steps_agree_with_the_episodes(ended: tuple[Path, dict[str, Any]]) -> None:
    runs, result = ended
    episodes, turns, segments, steps = (table(runs / "small", name) for name in TABLES)
    graded = episodes[episodes.outcome == "graded"].set_index("episode")
    by_episode = turns.groupby("episode")
    pd.testing.assert_series_equal(by_episode.size().reindex(graded.index), graded.n_turns, check_names=False)
    pd.testing.assert_series_equal(by_episode.n_tokens.sum().reindex(graded.index), graded.n_tokens, check_names=False)
    pd.testing.assert_series_equal(
        by_episode.n_prompt_tokens.sum().reindex(graded.index), graded.n_prompt_tokens, check_names=False
    )
    trained = segments.groupby("episode").n_trained.sum().reindex(graded.index, fill_value=0)
    pd.testing.assert_series_equal(trained, graded.n_tokens, check_names=False)
    assert (segments.ids.map(len) == segments.n_tokens).all() and (segments["mask"].map(sum) == segments.n_trained).all()
    assert set(turns.kind) <= {"act", "read", "answer"}
    calls = turns[turns.tool == "search"].groupby("episode").size().reindex(graded.index, fill_value=0)
    pd.testing.assert_series_equal(calls, graded.n_searches, check_names=False)
    assert list(steps.step) == list(range(result["steps"]))
    assert steps.n_tokens_trained.sum() == result["tokens"]["trained"]
    assert steps.n_episodes_counted.sum() == (episodes[episodes.purpose == "train"].fate == "counted").sum()
    assert steps.iloc[-1].version == result["policy_version"]


def test_advantages_and_training_log_probabilities_are_those_of_the_updates(ended: tuple[Path, dict[str, Any]]) -> None:
    runs, _ = ended
    segments = table(runs / "small", "segments")
    counted = segments[(segments.fate == "counted") & segments.step.notna()]
    assert (counted.advantage.notna()).all(), "every counted training episode has its advantage"
    for row in counted[counted.train_logprobs.notna()].itertuples():
        inside = ~np.isnan(row.train_logprobs)
        assert (np.asarray(row.mask)[inside] == 1).all()
        assert np.allclose(row.train_logprobs[inside], row.logprobs[inside], atol=1.0)


def stored_segments(runs: Path) -> dict[str, list[Segment]]:
    """What drivers stored for learning, by episode, as far as it is not purged."""

    async def read() -> dict[str, list[Segment]]:
        found: dict[str, list[Segment]] = {}
        async with open_run(Workspace(runs), "small", SystemPlatform(), "test") as source:
            for row in await source.rows():
                outcome = (await source.record(row.episode)).outcome
                if isinstance(outcome, EpisodeGraded) and outcome.trajectory is not None:
                    data = await source.blob(outcome.trajectory)
                    if data is not None:
                        found[row.episode] = decode_trajectory(data).segments
        return found

    return asyncio.run(read())


def test_segments_and_token_rows_are_what_the_drivers_stored(ended: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    runs, _ = ended
    stored = stored_segments(runs)
    assert len(stored) > 10
    segments = table(runs / "small", "segments").set_index("segment")
    out = tmp_path / "tokens.parquet"
    arguments = ("small", "--runs", str(runs), "--format", "sft", "--tokens", "--purpose", "any", "--out", str(out))
    assert invoke(dataset_command, *arguments).exit_code == 0
    tokens = pd.read_parquet(out).set_index("segment")
    for segment in (each for found in stored.values() for each in found):
        ids, mask = (np.frombuffer(segment.columns[name].data, dtype) for name, dtype in (("ids", "<u4"), ("mask", "u1")))
        row, exported = segments.loc[segment.id], tokens.loc[segment.id]
        np.testing.assert_array_equal(row.ids, ids)
        np.testing.assert_array_equal(row["mask"], mask)
        np.testing.assert_array_equal(row.logprobs, np.frombuffer(segment.columns["logprobs"].data, "<f4"))
        np.testing.assert_array_equal(exported.input_ids, ids)
        np.testing.assert_array_equal(exported.loss_mask, mask)
        np.testing.assert_array_equal(exported.labels, np.where(mask == 1, ids.astype(int), -100))


def test_writing_again_changes_nothing(ended: tuple[Path, dict[str, Any]]) -> None:
    runs, result = ended
    before = {path.name: path.read_bytes() for path in (runs / "small").glob("*.parquet")}
    done = invoke(archive_command, "small", "--runs", str(runs), "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["state"], report["reason"], report["problems"]) == ("ended", "completed", [])
    assert report["accounting"] == {name: result["accounting"][name] for name in report["accounting"]}
    assert {path.name: path.read_bytes() for path in (runs / "small").glob("*.parquet")} == before


# --- data sets --------------------------------------------------------------------------------------------------------


def exported(runs: Path, *arguments: str) -> list[dict[str, Any]]:
    done = invoke(dataset_command, *arguments, "--runs", str(runs))
    assert done.exit_code == 0, (done.output, done.exception)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_messages_hold_what_was_generated_and_nothing_more_is_trained(ended: tuple[Path, dict[str, Any]]) -> None:
    """Re-tokenising: the trained messages are the trained tokens, in order, and the tools' texts are context."""
    runs, _ = ended
    tokenizer = Tokenizer.load(msgspec.json.decode((runs / "small" / "run.json").read_bytes())["model_dir"])
    episodes = table(runs / "small", "episodes").set_index("episode")
    segments = table(runs / "small", "segments").groupby("episode")
    turns = table(runs / "small", "turns").groupby("episode")
    n_checked = 0
    rows = exported(runs, "small", "--format", "sft")
    assert {row["episode"] for row in rows} == set(episodes[(episodes.purpose == "train") & (episodes.outcome == "graded")].index)
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles[0] == "user" and set(roles) <= {"user", "assistant", "tool"}
        assert row["messages"][0]["content"] == episodes.loc[row["episode"]].question
        said = [each["content"].removeprefix("<think>") for each in row["messages"] if each["train"]]
        assert all(each["role"] == "assistant" for each in row["messages"] if each["train"])
        assert said == list(turns.get_group(row["episode"]).text)
        for each in segments.get_group(row["episode"]).itertuples():
            for ids in runs_of(each.ids, each.mask):
                text = tokenizer.decode(ids)
                # Where a generation ends within a character its text alone is another than among others.
                n_checked += "\ufffd" not in text and text in "".join(said)
                assert "\ufffd" in text or text in "".join(said)
        asked = [call["id"] for each in row["messages"] for call in each.get("tool_calls", [])]
        assert {each["tool_call_id"] for each in row["messages"] if each["role"] == "tool"} <= set(asked)
    assert n_checked > 10


def runs_of(ids: Any, mask: Any) -> list[list[int]]:
    """The trained tokens of a segment, cut where context stands between them."""
    found: list[list[int]] = []
    for number, (token, trained) in enumerate(zip(ids, mask, strict=True)):
        if trained and (number == 0 or not mask[number - 1]):
            found.append([])
        if trained:
            found[-1].append(int(token))
    return found


def test_evaluation_is_left_out_unless_asked_for(ended: tuple[Path, dict[str, Any]]) -> None:
    runs, result = ended
    n_eval = result["accounting_by_purpose"]["eval"]["graded"]
    assert all(row["episode"].startswith("t-") for row in exported(runs, "small", "--format", "sft"))
    assert len(exported(runs, "small", "--format", "sft", "--purpose", "eval")) == n_eval
    assert len(exported(runs, "small", "--format", "sft", "--purpose", "eval", "-w", "label=after")) == n_eval // 2


@pytest.fixture(scope="module")
def regraded(ended: tuple[Path, dict[str, Any]], folder: Path) -> Path:
    """The run's archive alone, without its broker's store, with rewards that differ within a group."""
    runs, _ = ended
    copy = folder / "regraded" / "small"
    shutil.copytree(runs / "small" / "archive", copy / "archive")
    shutil.copy(runs / "small" / "run.json", copy)
    lines = (copy / "archive" / "episodes.jsonl").read_bytes().splitlines()
    changed: list[bytes] = []
    for line in lines:
        entry = decode_episode(line)
        outcome = entry.outcome
        if isinstance(outcome, EpisodeGraded):
            value = 1.0 if outcome.member == 0 else 0.25 * (outcome.member % 3)
            outcome = msgspec.structs.replace(outcome, reward=Reward(value=value), correct=value == 1.0)
        changed.append(encode_episode(entry.sequence, outcome, list(zip(entry.sequences, entry.facts, strict=True))) + b"\n")
    (copy / "archive" / "episodes.jsonl").write_bytes(b"".join(changed))
    return copy.parent


def test_rejection_sampling_keeps_one_right_answer_a_task(regraded: Path) -> None:
    rows = exported(regraded, "small", "--format", "rft")
    assert rows and all(row["correct"] for row in rows)
    assert max(Counter(row["task"] for row in rows).values()) == 1
    more = exported(regraded, "small", "--format", "rft", "--max-per-task", "9")
    texts = [(row["task"], json.dumps([each["content"] for each in row["messages"] if each["train"]])) for row in more]
    assert len(texts) == len(set(texts)), "no solution twice"


def test_preference_pairs_share_their_prompt(regraded: Path, tmp_path: Path) -> None:
    rows = exported(regraded, "small", "--format", "dpo", "--max-per-task", "9", "--min-margin", "0.5")
    assert rows
    for row in rows:
        assert row["chosen_episode"].rpartition("-")[0] == row["rejected_episode"].rpartition("-")[0] == row["group"]
        assert row["margin"] == row["chosen_reward"] - row["rejected_reward"] >= 0.5
        assert [each["role"] for each in row["prompt"]] == ["user"]
        assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"
    out = tmp_path / "pairs.parquet"
    assert invoke(dataset_command, "small", "--runs", str(regraded), "--format", "dpo", "--out", str(out)).exit_code == 0
    frame = pd.read_parquet(out)
    assert (
        json.loads(next(each["tool_calls"] for each in [*frame.chosen[0], {"tool_calls": "[]"}] if each["tool_calls"]))
        is not None
    )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--format", "sft", "--min-reward", "7"), "lower --min-reward"),
        (("--format", "dpo", "--min-margin", "7"), "lower --min-margin"),
        (("--format", "sft", "-w", "task=nowhere"), "see `asearch episodes`"),
        (("--format", "sft", "-w", "colour=red"), "no filter 'colour'"),
        (("--format", "sft", "-w", "task"), "FIELD=VALUE"),
        (("--format", "dpo", "--tokens"), "leave --tokens out"),
        (("--format", "sft", "--out", "x.csv"), ".jsonl or .parquet"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_advice(regraded: Path, arguments: tuple[str, ...], advice: str) -> None:
    done = invoke(dataset_command, "small", "--runs", str(regraded), *arguments)
    assert isinstance(done.exception, AsearchError)
    assert advice in str(done.exception)
    assert done.exception.exit_code == 2


def test_archive_alone_is_enough_for_the_tables_and_a_changed_fact_is_named(regraded: Path) -> None:
    done = invoke(archive_command, "small", "--runs", str(regraded), "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["state"] == "unknown" and "requested" not in report["accounting"]
    assert report["rows"]["episodes"] == report["accounting"]["graded"] > 20
    assert report["rows"]["segments"] > 20
    path = regraded / "small" / "archive" / "episodes.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"finish":"stop"', b'"finish":"stoq"', 1))
    done = invoke(archive_command, "small", "--runs", str(regraded), "--out", str(regraded / "changed"))
    path.write_bytes(whole)
    assert done.exit_code == 1
    assert "fact 1 (tokens_generated" in done.output and "not as it was written" in done.output


def test_behaviour_of_a_run(ended: tuple[Path, dict[str, Any]]) -> None:
    runs, result = ended
    done = invoke(behaviour_command, "small", "--runs", str(runs), "--json")
    found = json.loads(done.stdout)
    assert (found["done"], found["n"]) == (True, result["accounting"]["requested"])
    assert found["summary"]["by_label"]["after"]["counts"]["n_turns"]["mean"] == result["eval"]["after"]["turns_per_episode"]
    assert (
        found["summary"]["by_label"]["after"]["counts"]["n_searches"]["mean"] == result["eval"]["after"]["searches_per_episode"]
    )
    text = invoke(behaviour_command, "small", "--runs", str(runs), "--sample", "9").output
    assert f"9 of {found['n']} archived episodes" in text and "planning (share)" in text
    assert "list items" in invoke(behaviour_command, "--rules").output


# --- a run that was killed --------------------------------------------------------------------------------------------


def test_run_that_was_killed_as_a_whole_is_archived_as_far_as_it_came(ended: tuple[Path, dict[str, Any]], folder: Path) -> None:
    runs = folder / "killed"
    path = runs / "long" / "archive" / "episodes.jsonl"
    with subprocess.Popen(
        command(runs, "long", 500),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(folder),
        start_new_session=True,
    ) as process:
        try:
            deadline_s = time.monotonic() + 120.0
            while not path.is_file() or path.read_bytes().count(b"\n") < 30:
                assert process.poll() is None and time.monotonic() < deadline_s, "the run did not come that far"
                time.sleep(0.05)
        finally:
            kill_all(process.pid, runs)
            remove_weights(runs)
    with path.open("ab") as file:
        file.write(b'{"episode":"t-9-0-0","seq')
    done = invoke(archive_command, "long", "--runs", str(runs), "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    episodes = table(runs / "long", "episodes")
    assert report["state"] == "unfinished"
    assert len(episodes) == report["rows"]["episodes"] >= 30
    assert episodes.episode.is_unique
    assert report["accounting"]["requested"] >= len(episodes)
    archived = {decode_episode(line).episode for line in path.read_bytes().splitlines()[:-1]}
    assert archived <= set(episodes.episode)
    assert set(table(runs / "long", "turns").episode) <= set(episodes.episode)
    assert not list((runs / "long").glob(".*.part"))


def kill_all(supervisor: int, runs: Path) -> None:
    """SIGKILL to every process of the run, its broker included, and to nothing else."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGKILL)
    for process in psutil.process_iter(["cmdline"]):
        if str(runs) in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
