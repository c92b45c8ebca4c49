"""The commands that look, on one real run: first while it is live, then after everything of it was killed, broker included.

The tests stand in this order: those with `live` come before the first with `crashed`.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lxml import html

from actors.runtime.archive import read_outcomes
from actors.runtime.archive_index import ArchiveIndex
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, read_run_file, write_run_file
from actors.runtime.workspace import Process, Workspace
from asearch.configuration.settings import Settings
from asearch.traces.plain_text import plain
from schemas.archive import OUTCOMES
from tests.cli.left_over import processes_of, remove_weights
from tests.cli.looked_at import Ended, asearch, command, kill_whole, start, until

RUN = "looked"


class Live:
    """The run, and what follows it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.supervisor = start(root, RUN, steps=1000, seed=5)
        self.follower: subprocess.Popen[bytes] | None = None

    def step(self) -> int:
        (line,) = asearch(self.root, "runs", "--json").lines
        return line["step"] or 0


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A run with some updates, which goes on."""
    root = tmp_path_factory.mktemp("look") / "runs"
    held = Live(root)
    try:
        until(lambda: (root / RUN / "run.json").is_file(), 60, "the run's file")
        until(lambda: held.supervisor.poll() is None and read_run_file(root / RUN).corpus_url, 120, "the actors' start")
        until(lambda: held.step() >= 2, 120, "two updates", every_s=1.0)
        yield held
    finally:
        if held.supervisor.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(held.supervisor.pid, signal.SIGTERM)
            held.supervisor.wait(60)
        remove_weights(root)


@pytest.fixture(scope="module")
def crashed(live: Live) -> Path:
    """The same run after SIGKILL to all of it."""
    if live.supervisor.poll() is None:
        kill_whole(live.root, live.supervisor)
    assert processes_of(live.root) == []
    return live.root


def good(ended: Ended) -> Ended:
    assert ended.status == 0, ended.err
    return ended


# --- live ---


def test_a_live_run_is_listed_and_its_state_is_told(live: Live) -> None:
    (line,) = good(asearch(live.root, "runs", "--json")).lines
    assert (line["run"], line["state"], line["recipe"], line["seed"]) == (RUN, "live", "toy", 5)
    assert line["step"] >= 2
    assert line["planned_steps"] == 1000
    assert line["episodes_ended"] > 0
    assert line["started"].endswith("Z")
    assert line["n_bytes"] > 100_000
    assert 0 <= line["accuracy_before"] <= 1
    (live.root / RUN / "viewer.url").write_text("http://127.0.0.1:1/\n")
    told = asearch(live.root, "status", "--json")
    assert told.status == 0, told.out
    assert told.lines[0]["page"] == "http://127.0.0.1:1/"
    assert set(told.lines[0]["actors"]) >= {"driver-0", "trainer-0"}


def test_a_live_run_is_watched(live: Live) -> None:
    now = good(asearch(live.root, "watch", "--once", "--json")).lines[0]
    assert now["state"] == "live"
    assert {each["state"] for each in now["actors"].values()} == {"ready"}
    assert now["actors"]["engine-0"]["version"].startswith("1.")
    assert now["broken"] == []
    n_open = sum(now["stages"][stage]["n"] for stage in ("waiting", "generating", "tool", "grading"))
    assert n_open == now["accounting"]["in_flight"] > 0
    assert now["stages"]["graded"]["n"] == now["accounting"]["graded"]
    assert now["stages"]["graded"]["per_s"] > 0
    slowest = now["slowest"]
    assert slowest
    assert [each["open_s"] for each in slowest] == sorted((each["open_s"] for each in slowest), reverse=True)
    assert {each["stage"] for each in slowest} <= {"waiting", "generating", "tool", "grading"}


def test_watching_goes_on_at_least_every_second(live: Live) -> None:
    watching = subprocess.Popen(command("watch", RUN, "--json", "--runs", live.root), stdout=subprocess.PIPE)
    try:
        assert watching.stdout is not None
        lines = [msgspec.json.decode(watching.stdout.readline()) for _ in range(5)]
    finally:
        watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0
    gaps = [(late["at_ns"] - early["at_ns"]) / 1e9 for early, late in itertools.pairwise(lines)]
    assert max(gaps) < 1.0
    assert lines[-1]["accounting"]["requested"] >= lines[0]["accounting"]["requested"]


def test_an_open_episode_is_told_as_far_as_it_is(live: Live) -> None:
    def told() -> dict[str, Any] | None:
        rows = good(asearch(live.root, "episodes", "--stage", "generating", "--json")).lines
        found = asearch(live.root, "show", rows[0]["episode"], "--json") if rows else None
        return found.lines[0] if found is not None and found.lines[0]["items"] else None

    content = until(told, 30, "an episode that is open")
    assert content["items"][0]["kind"] == "shown"
    assert content["key"]["answers"]


def test_events_are_followed_across_a_killed_broker(live: Live, tmp_path: Path) -> None:
    arguments = command("events", RUN, "--stream", "outcomes", "--follow", "--json", "--runs", live.root)
    with (tmp_path / "followed").open("wb") as out, (tmp_path / "err").open("wb") as err:
        follower = subprocess.Popen(arguments, stdout=out, stderr=err)

    def sequences() -> list[int]:
        return [
            msgspec.json.decode(line)["sequence"]
            for line in (tmp_path / "followed").read_bytes().splitlines(True)
            if line.endswith(b"\n")
        ]

    def broker() -> int:
        return msgspec.json.decode((live.root / ".broker" / "broker.json").read_bytes())["process"]["pid"]

    try:
        until(sequences, 20, "the first events")
        killed = broker()
        os.kill(killed, signal.SIGKILL)
        until(lambda: broker() != killed, 60, "the broker's restart")
        seen = len(sequences())
        until(lambda: len(sequences()) > seen + 5, 60, "events after the broker's restart")
    finally:
        follower.send_signal(signal.SIGINT)
    assert follower.wait(10) == 0
    assert sequences() == list(range(1, len(sequences()) + 1))
    assert "nats --server" in (tmp_path / "err").read_text()


# --- crashed ---


def test_a_crashed_run_is_named_so(crashed: Path) -> None:
    (line,) = good(asearch(crashed, "runs", "--json")).lines
    assert (line["state"], line["ended"]) == ("crashed", None)
    assert line["step"] >= 2
    assert asearch(crashed, "status").status == 3
    now = good(asearch(crashed, "watch", "--json")).lines
    assert [each["state"] for each in now] == ["crashed"]
    assert now[0]["accounting"]["in_flight"] == len(asearch(crashed, "episodes", "--stage", "open", "--json").lines)
    assert "goes on" in now[0]["note"]
    assert processes_of(crashed) == []


def test_episodes_of_a_crashed_run_are_listed_and_filtered(crashed: Path) -> None:
    rows = good(asearch(crashed, "episodes", "--json")).lines
    assert len({row["episode"] for row in rows}) == len(rows) > 20
    ended = [row for row in rows if row["ended_ns"]]
    assert {row["stage"] for row in ended} <= {"graded", "dropped", "dead"}
    wrong = good(
        asearch(crashed, "episodes", "--wrong", "--purpose", "train", "--min-turns", "2", "--sort", "tokens", "--json")
    ).lines
    assert {row["episode"] for row in wrong} == {
        row["episode"] for row in rows if row["correct"] is False and row["purpose"] == "train" and row["n_turns"] >= 2
    }
    assert [row["n_tokens"] for row in wrong] == sorted((row["n_tokens"] for row in wrong), reverse=True)
    shown = good(asearch(crashed, "episodes", RUN, "--limit", "3"))
    assert len(shown.out.splitlines()) == 4
    assert f"3 of {len(rows)} episodes" in shown.err
    assert asearch(crashed, "episodes", "--sort", "colour").status == 2


def graded(root: Path) -> dict[str, Any]:
    rows = asearch(root, "episodes", "--stage", "graded", "--min-turns", "2", "--sort", "searches", "--json").lines
    return rows[0]


def test_an_episode_of_a_crashed_run_is_shown_and_exported(crashed: Path, tmp_path: Path) -> None:
    row = graded(crashed)
    name = str(row["episode"])
    content = good(asearch(crashed, "show", name, "--json", "--full")).lines[0]
    assert content["row"] == row
    assert content["key"]["answers"]
    kinds = [item["kind"] for item in content["items"]]
    assert kinds.count("generation") == row["n_turns"] or kinds.count("generation") >= 2
    assert kinds[-1] == "outcome"
    n_generated = sum(item["n"] for item in content["items"] if item["kind"] == "generation")
    assert n_generated == row["n_tokens"] == sum(line["mask"] for table in content["tokens"] for line in table["lines"])
    text = good(asearch(crashed, "show", name, "--full")).out
    assert str(row["question"]) in text
    for item in content["items"]:
        if item["kind"] == "called":
            assert all(line.rstrip() in text for line in plain(item["argument"]).split("\n")), item["argument"]
    out = tmp_path / "one.html"
    assert good(asearch(crashed, "export", f"{name}.html", "--out", out)).out.strip() == str(out)
    page = html.parse(str(out)).getroot().text_content()
    assert str(row["question"]) in page
    for item in content["items"]:
        for document in item.get("documents", ()):
            assert document["text"] in page


def test_a_name_that_is_not_whole_is_completed_or_refused(crashed: Path) -> None:
    names = sorted(str(row["episode"]) for row in asearch(crashed, "episodes", "--json").lines)
    name = next(each for each in names if each.startswith("e-before"))
    beginning = next(name[:n] for n in range(1, len(name) + 1) if sum(each.startswith(name[:n]) for each in names) == 1)
    assert asearch(crashed, "show", beginning, "--json").lines[0]["row"]["episode"] == name
    several = asearch(crashed, "show", "e-before")
    assert several.status == 2
    assert "may mean" in several.err
    mistyped = asearch(crashed, "show", name.replace("before", "befour"))
    assert mistyped.status == 2
    assert name in mistyped.err


def test_events_of_a_crashed_run_are_read_from_anywhere(crashed: Path) -> None:
    every = good(asearch(crashed, "events", "--stream", "plan", "--json")).lines
    assert [line["sequence"] for line in every] == list(range(1, len(every) + 1))
    assert every[0]["event"]["type"] in ("run_started", "answer_key_stored")
    assert good(asearch(crashed, "events", "--stream", "plan", "--from", "7", "--limit", "2", "--json")).lines == every[6:8]
    assert good(asearch(crashed, "events", "--stream", "plan", "--last", "3", "--json")).lines == every[-3:]
    middle = every[len(every) // 2]
    late = good(asearch(crashed, "events", "--stream", "plan", "--from", middle["at"].replace(" ", "T"), "--json")).lines
    assert late == [line for line in every if line["at_ns"] // 1_000_000 >= middle["at_ns"] // 1_000_000]
    assert len(good(asearch(crashed, "events", "--stream", "plan", "--from", "-1d", "--json")).lines) == len(every)
    by_subject = good(asearch(crashed, "events", "--subject", "plan.episode.requested.>", "--json")).lines
    by_type = good(asearch(crashed, "events", "--type", "episode_requested", "--json")).lines
    assert by_subject == by_type == [line for line in every if line["event"]["type"] == "episode_requested"]
    merged = good(asearch(crashed, "events", "--last", "200", "--json")).lines
    assert len(merged) == 200
    assert [line["at_ns"] for line in merged] == sorted(line["at_ns"] for line in merged)
    assert len({line["stream"] for line in merged}) > 1


def test_an_episodes_events_and_columns(crashed: Path) -> None:
    name = graded(crashed)["episode"]
    summed = good(asearch(crashed, "events", "--key", name, "--type", "tokens_generated", "--json")).lines
    decoded = good(asearch(crashed, "events", "--key", name, "--type", "tokens_generated", "--columns", "--json")).lines
    assert [line["event"]["id"] for line in summed] == [line["event"]["id"] for line in decoded] != []
    for short, long in zip(summed, decoded, strict=True):
        ids, logprobs = long["event"]["columns"]["ids"], long["event"]["columns"]["logprobs"]
        assert short["event"]["columns"]["ids"] == {"dtype": "u4", "shape": ids["shape"], "n_bytes": 4 * len(ids["values"])}
        assert all(isinstance(each, int) for each in ids["values"])
        assert len(ids["values"]) == len(logprobs["values"]) == ids["shape"][0]
        assert all(each <= 0.0 for each in logprobs["values"])
    assert "tokens_generated" in good(asearch(crashed, "events", "--key", name)).out


def test_logs_of_a_crashed_run(crashed: Path) -> None:
    tail = good(asearch(crashed, "logs", "--actor", "trainer-0", "--tail", "1", "--json")).lines
    assert [line["log"] for line in tail] == ["trainer-0"]
    assert asearch(crashed, "logs", "--actor", "trainer-9").status == 2
    name = graded(crashed)["episode"]
    log = crashed / RUN / "logs" / "tool-0.log"
    with log.open("a") as file:
        file.write(f'{{"event": "slow", "episode": "{name}", "timestamp": "2026-01-01T00:00:02Z"}}\n')
        file.write(f'{{"event": "other", "episode": "{name}0", "timestamp": "2026-01-01T00:00:01Z"}}\n')
        file.write(f"GET /generate {name}:g0 \x1b[31m 200\n")
    about = good(asearch(crashed, "logs", name))
    said = [line for line in about.out.splitlines() if " tool-0 " in line]
    assert sum(str(name) in line for line in said) == 2
    assert "other" not in about.out
    assert "\\x1b[31m" in about.out


def test_without_the_brokers_store_the_archive_answers(crashed: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(crashed / RUN, root / RUN)
    archived = [line.outcome.episode for line in read_outcomes(root / RUN / "archive" / OUTCOMES) if line.outcome]
    listed = good(asearch(root, "episodes", "--json"))
    assert "store" in listed.err
    index = ArchiveIndex(root / RUN / "archive")
    index.refresh()
    # The newest may have been killed between its line here and that of its outcome.
    assert {row["episode"] for row in listed.lines} == set(index) >= set(archived) != set()
    shown = good(asearch(root, "show", archived[0], "--json"))
    assert shown.lines[0]["items"][-1]["kind"] == "outcome"
    assert shown.lines[0]["key"] is None
    facts = good(asearch(root, "events", "--stream", "trace", "--stream", "outcomes", "--json")).lines
    assert {line["event"]["episode"] for line in facts if line["stream"] == "outcomes"} == set(archived)
    assert [line["sequence"] for line in facts if line["stream"] == "trace"] == sorted(
        line["sequence"] for line in facts if line["stream"] == "trace"
    )
    assert all(line["archived"] for line in facts)
    assert asearch(root, "events", "--stream", "plan").status == 2
    assert good(asearch(root, "runs", "--json")).lines[0]["note"] == "the broker's store is gone"
    assert good(asearch(root, "watch", "--json")).lines[0]["stages"]["graded"]["n"] > 0
    assert good(asearch(root, "export", archived[0], "--out", tmp_path / "a.html")).status == 0


def test_unknown_runs_and_folders_are_named(tmp_path: Path) -> None:
    assert asearch(tmp_path / "none", "runs").status == 0
    for words in (("show", "e"), ("episodes",), ("events",), ("watch",), ("logs", "e")):
        ended = asearch(tmp_path, *words)
        assert ended.status == 2, words
        assert "there is no run" in ended.err
    for option in (
        ("--subject", "a..b"),
        ("--subject", "plan.>.x"),
        ("--type", "run_startd"),
        ("--from", "yesterday"),
        ("--key", "a.b"),
    ):
        assert asearch(tmp_path, "events", *option).status == 2


async def purge_archived(root: Path) -> list[str]:
    """Purge the older half of OUTCOMES, and from TRACE and BLOBS what the archive has of it; the episodes."""
    workspace, platform = Workspace(root), SystemPlatform()
    names = [line.outcome.episode for line in read_outcomes(root / RUN / "archive" / OUTCOMES) if line.outcome]
    url, started = await workspace.broker(platform)
    bus = await connect(url, RUN, "operator", platform)
    for name in names[: len(names) // 2]:
        await bus.purge("trace", key=(name,))
        await bus.purge("blobs", key=(name,))
    await bus.purge("outcomes", up_to_sequence=len(names) // 2)
    await bus.close()
    await workspace.release(started, RUN)
    return names[: len(names) // 2]


def test_what_was_purged_comes_from_the_archive(crashed: Path) -> None:
    def read(*options: str) -> list[tuple[int, str]]:
        lines = good(asearch(crashed, "events", *options, "--json")).lines
        return [(line["sequence"], line["event"]["id"]) for line in lines]

    streams = ("--stream", "trace"), ("--stream", "outcomes")
    before = [read(*stream) for stream in streams]
    rows = good(asearch(crashed, "episodes", "--json")).lines
    purged = asyncio.run(purge_archived(crashed))
    assert len(purged) > 5
    assert [read(*stream) for stream in streams] == before
    assert all(len(read(*stream, "--no-archive")) < len(all_) for stream, all_ in zip(streams, before, strict=True))
    assert "archive" in asearch(crashed, "events", "--stream", "trace").err
    assert good(asearch(crashed, "episodes", "--json")).lines == rows
    assert good(asearch(crashed, "show", purged[0], "--json")).lines[0]["items"]
    by_key = read("--key", purged[0], "--stream", "trace")
    assert by_key == [each for each in before[0] if each in by_key] != []


def test_steps_of_a_crashed_run_are_trained_again_from_streams_and_archive(crashed: Path) -> None:
    recorded = good(asearch(crashed, "events", "--stream", "policy", "--type", "step_trained", "--json")).lines
    (told,) = good(asearch(crashed, "train", "toy", "--replay", RUN, "--json")).lines
    replay = told["replay"]
    assert [each["step"] for each in replay["by_step"]] == list(range(len(recorded)))
    losses = [line["event"]["metrics"].get("loss") for line in recorded]
    assert [each["loss"] for each in replay["by_step"]] == losses
    assert (replay["updates"], replay["settings"]) == (sum(loss is not None for loss in losses), {})
    assert replay["updates"] > 0
    assert replay["max_loss_difference"] == replay["max_grad_norm_difference"] == 0.0
    assert replay["same_tokens"] and replay["n_tokens"] > 0 < replay["tokens_per_s"]
    for wrong, why in (
        (("--steps", "100000"), f"has {len(recorded)} recorded steps"),
        (("--steps", "0"), "at least 1"),
        (("--seed", "1"), "--seed does not go with --replay"),
        (("--model", "x"), "--model does not go with --replay"),
        (("-s", "run.eta=3"), "run.eta cannot be changed"),
        (("-s", "trainer.lr=0"), "lr must be above 0"),
    ):
        ended = asearch(crashed, "train", "toy", "--replay", RUN, *wrong)
        assert (ended.status, why in ended.err) == (2, True), ended.err
    assert "made with the recipe 'toy'" in asearch(crashed, "train", "other", "--replay", RUN).err
    assert asearch(crashed, "train", "--replay", "nobody").status == 2
    assert processes_of(crashed) == []


def test_several_live_runs_and_ended_ones(tmp_path: Path) -> None:
    me = Process.own()
    texts = dict.fromkeys(("broker_url", "corpus_url", "model_dir", "train_tasks", "eval_tasks", "weights_dir"), "")
    for name, pid, began in (("one", me.pid, me.started), ("two", me.pid, me.started), ("three", 1, 0.0)):
        (tmp_path / name).mkdir()
        file = RunFile(run=name, settings=Settings(), supervisor_pid=pid, supervisor_started=began, **texts)
        write_run_file(tmp_path / name, file)
    result = {
        "ended": "completed", "steps": 40, "wall_s": 10.0, "accounting": {"requested": 9, "graded": 8, "dropped": 1},
        "eval": {"before": {"accuracy": 0.25}, "after": {"accuracy": 0.5}},
    }  # fmt: skip
    (tmp_path / "three" / "result.json").write_bytes(msgspec.json.encode(result))
    told = asearch(tmp_path, "status", "--json")
    assert (told.status, [line["run"] for line in told.lines]) == (1, ["one", "two"])
    assert asearch(tmp_path, "status", "--run", "three").status == 3
    lines = {line["run"]: line for line in good(asearch(tmp_path, "runs", "--json")).lines}
    assert [lines[name]["state"] for name in ("one", "two", "three")] == ["preparing", "preparing", "ended"]
    ended = lines["three"]
    assert (ended["ended"], ended["step"], ended["accuracy_before"], ended["accuracy_after"]) == ("completed", 40, 0.25, 0.5)
    assert (ended["episodes_requested"], ended["episodes_ended"]) == (9, 9)
    assert "three  ended (completed)" in good(asearch(tmp_path, "runs")).out
