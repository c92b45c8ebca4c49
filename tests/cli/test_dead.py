"""`asearch dead` on a real broker: what it lists, shows and appends again, on a run that is over and on a live one."""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from actors.cli import dead_letters
from actors.cli.dead import dead
from actors.cli.main import main
from actors.runtime.bus import Bus, Stored
from actors.runtime.dead_letters import bury
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, write_run_file
from actors.runtime.workspace import Process, Workspace
from asearch.configuration.settings import Settings
from schemas.codec import encode
from schemas.events import EpisodeDropped, EpisodeRequested, StepTrained, ToolRequested
from schemas.topology import MAX_PAYLOAD_BYTES, subject
from tests.runtime.facts import call

EVIL = b"\xc1\x1b]0;title\x07 page \x9b31m"
CALL = call("e3", 1)


async def read_all(bus: Bus, stream: str) -> list[Stored]:
    async with aclosing(bus.read(stream, follow=False)) as reader:
        return [stored async for stored in reader]


async def poisoned(bus: Bus) -> None:
    """Six refused messages: noise, one with terminal controls, a fact that always failed, an outcome, a request, a step."""
    await bus.ensure_topology()
    told = [
        (ToolRequested, "e1", b"\xff noise", "not an event (no_msgpack): \x1b[31mred"),
        (ToolRequested, "e2", EVIL, "not an event (no_msgpack)"),
        (ToolRequested, "e3", encode(CALL), "ValueError: this one cannot be handled"),
        (EpisodeDropped, "e4", b"\xff", "not an event (truncated)"),
        (EpisodeRequested, "e5", b"\xff", "not an event (truncated)"),
        (StepTrained, "policy", b"\xff", "not an event (truncated)"),
    ]
    for n, (kind, key, data, reason) in enumerate(told):
        await bus.append_bytes(subject("r", kind, key), data, f"m{n}")
        (stored,) = [each for stream in ("trace", "outcomes", "plan", "policy") for each in await bus.read_key(stream, key)]
        assert await bury(bus, stored, "tool", reason)


def run_file(workspace: Workspace, process: Process) -> None:
    workspace.run_dir("r").mkdir(parents=True, exist_ok=True)
    texts = dict.fromkeys(("broker_url", "corpus_url", "model_dir", "train_tasks", "eval_tasks", "weights_dir"), "")
    file = RunFile(run="r", settings=Settings(), supervisor_pid=process.pid, supervisor_started=process.started, **texts)
    write_run_file(workspace.run_dir("r"), file)


async def invoke(root: Path, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, dead, [*arguments, "--runs", str(root)])


@pytest.fixture
async def over(tmp_path: Path) -> Path:
    """A run that is over: its broker does not run."""
    workspace, platform = Workspace(tmp_path), SystemPlatform()
    url, started = await workspace.broker(platform)
    bus = await connect(url, "r", "scheduler", platform)
    await poisoned(bus)
    await bus.close()
    await workspace.release(started, "r")
    run_file(workspace, Process(1, 0.0))
    return tmp_path


async def facts_of(root: Path, stream: str) -> list[Stored]:
    workspace, platform = Workspace(root), SystemPlatform()
    url, started = await workspace.broker(platform)
    bus = await connect(url, "r", "viewer", platform)
    try:
        return await read_all(bus, stream)
    finally:
        await bus.close()
        await workspace.release(started, "r")


async def test_a_run_that_is_over_is_listed_shown_and_requeued(over: Path) -> None:
    listed = await invoke(over, "list", "--json")
    assert listed.exit_code == 0, listed.output
    said = msgspec.json.decode(listed.stdout)
    assert (said["run"], said["n"]) == ("r", 6)
    first = said["dead"][0]
    assert (first["id"], first["stream"], first["sequence"], first["size_bytes"]) == ("dead-trace-1", "trace", 1, 7)
    assert msgspec.json.decode((await invoke(over, "list", "r", "--reason", "truncated", "--json")).stdout)["n"] == 3

    shown = await invoke(over, "show", "r", "dead-trace-3")
    assert "an event that this build can read" in shown.output and '"argument"' in shown.output
    assert "ff 20 6e 6f" in (await invoke(over, "show", "r", "1")).output
    assert (await invoke(over, "show", "r", "dead-trace-2", "--raw")).stdout_bytes == EVIL
    assert (await invoke(over, "show", "r", "99")).exit_code != 0

    done = await invoke(over, "requeue", "r", "dead-trace-3", "1")
    assert done.exit_code == 0, done.output
    trace = await facts_of(over, "trace")
    assert [each.data for each in trace] == [b"\xff noise", EVIL, encode(CALL), encode(CALL), b"\xff noise"]
    assert trace[3].subject == trace[2].subject and trace[3].event == CALL
    again = msgspec.json.decode((await invoke(over, "list", "r", "--json")).stdout)
    assert [each["requeued"] for each in again["dead"]] == [5, 0, 4, 0, 0, 0]
    assert "requeued at 4" in (await invoke(over, "list", "r")).stdout
    twice = await invoke(over, "requeue", "r", "dead-trace-3")
    assert twice.exit_code == 1 and "requeued already" in twice.output
    assert not (over / ".broker" / "broker.json").exists(), "the broker was started for the command alone"


async def test_outcomes_and_the_journal_are_never_doubled(over: Path) -> None:
    done = await invoke(over, "requeue", "r", "--all")
    assert done.exit_code == 1
    assert "an episode has one outcome" in done.output and "the journal is the trainer's alone" in done.output
    assert "4 of 6 requeued" in done.output
    assert [len(await facts_of(over, stream)) for stream in ("outcomes", "policy", "plan", "trace")] == [1, 1, 2, 6]


async def test_nothing_that_a_terminal_obeys_is_printed(over: Path) -> None:
    for arguments in (("list", "r"), ("show", "r", "dead-trace-1"), ("show", "r", "dead-trace-2")):
        output = (await invoke(over, *arguments)).output
        assert all(each.isprintable() or each == "\n" for each in output), arguments
    evil = dead_letters.content_of(msgspec.msgpack.encode({"type": "tool_requested", "argument": "\x1b]0;x\x07\u202e\x9b"}))
    assert all(each.isprintable() or each == "\n" for each in evil)
    assert "as plain msgpack" in evil


async def test_a_live_run_takes_calls_again_but_not_requests(tmp_path: Path) -> None:
    workspace, platform = Workspace(tmp_path), SystemPlatform()
    url, started = await workspace.broker(platform, run="supervisor")  # a user of its own: the command runs in this process
    bus = await connect(url, "r", "scheduler", platform)
    try:
        await poisoned(bus)
        run_file(workspace, Process.own())
        listed = await invoke(tmp_path, "list", "--json")
        assert msgspec.json.decode(listed.stdout)["n"] == 6
        done = await invoke(tmp_path, "requeue", "r", "--all", "--reason", "truncated")
        assert done.exit_code == 1 and "stop the run first" in done.output
        assert (await invoke(tmp_path, "requeue", "r", "dead-trace-3")).exit_code == 0
        assert [each.event for each in await read_all(bus, "trace")][-1] == CALL
        assert await bus.last_sequence("plan") == 1
    finally:
        await bus.close()
        await workspace.release(started, "supervisor")


async def test_a_message_that_dead_holds_in_part_is_taken_from_its_stream(tmp_path: Path) -> None:
    workspace, platform = Workspace(tmp_path), SystemPlatform()
    url, started = await workspace.broker(platform, run="r")
    bus = await connect(url, "r", "recorder", platform)
    try:
        await bus.ensure_topology()
        large = b"\xff" * (MAX_PAYLOAD_BYTES - 2048)
        await bus.append_bytes(subject("r", ToolRequested, "e1"), large, "m")
        (stored,) = await read_all(bus, "trace")
        assert await bury(bus, stored, "recorder", "large")
        (letter,) = await dead_letters.letters(bus)
        assert letter.size_bytes == len(large)
        assert await dead_letters.requeue(bus, letter, live=True) == 2
        assert [each.data for each in await read_all(bus, "trace")] == [large, large]
        await bus.purge("trace")
        await bus.append_bytes(subject("r", ToolRequested, "e1"), large, "m2")
        (third,) = await read_all(bus, "trace")
        assert await bury(bus, third, "recorder", "large")
        await bus.purge("trace")
        with pytest.raises(dead_letters.NotRequeuedError, match="the original was purged"):
            await dead_letters.requeue(bus, (await dead_letters.letters(bus))[-1], live=True)
    finally:
        await bus.close()
        await workspace.release(started, "r")


def test_wrong_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["list", "none"], ["show", "none", "1"], ["requeue", "none", "--all"], ["list"], ["requeue", "none"]):
        monkeypatch.setattr(sys, "argv", ["asearch", "dead", *arguments, "--runs", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told and ("no run" in told or "--all" in told)
