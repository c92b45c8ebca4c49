"""What the commands that look are made of: subject filters, moments, order of archived messages, log lines, completion."""

import errno
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from actors.cli.completing import ended_episodes
from actors.cli.episode_text import text_of
from actors.cli.event_choice import Choice, choose, moment
from actors.cli.event_text import event_json, event_line
from actors.cli.log_lines import About, LogFile
from actors.cli.main import COMMANDS, SECTIONS, cli, main
from actors.cli.output import unwritable
from actors.runtime.bus import Stored
from actors.runtime.event_history import ArchivedMessage, archived_messages, last_messages, merged_by_time, with_archive
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from asearch.errors import InputError
from schemas.archive import EPISODES, ArchivedEpisode
from tests.runtime.facts import call, dropped
from tests.traces.spoken import hostile_episode

NOW_NS = 1_800_000_000_000_000_000


# --- which messages ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"streams": ["plan"]}, {"plan": ["asearch.r.plan.>"]}),
        ({"subjects": ["trace.tool.requested.>"]}, {"trace": ["asearch.r.trace.tool.requested.>"]}),
        ({"subjects": ["asearch.r.trace.tool.requested.>"]}, {"trace": ["asearch.r.trace.tool.requested.>"]}),
        ({"subjects": ["asearch.*.*.episode.*.e1"], "streams": ["trace"]}, {"trace": ["asearch.r.trace.episode.*.e1"]}),
        ({"types": ["step_trained"]}, {"policy": ["asearch.r.policy.step.trained.>"]}),
        ({"key": "e1", "streams": ["trace"]}, {"trace": ["asearch.r.trace.*.*.e1"]}),
        ({"key": "e1", "streams": ["blobs"]}, {"blobs": ["asearch.r.blobs.*.*.e1.>"]}),
        ({"types": ["tool_requested"], "key": "e1"}, {"trace": ["asearch.r.trace.tool.requested.e1"]}),
        ({"subjects": ["trace.tool.>"], "key": "e1"}, {"trace": ["asearch.r.trace.tool.*.e1"]}),
        ({"subjects": ["trace.tool.>", "trace.tool.>"]}, {"trace": ["asearch.r.trace.tool.>"]}),
    ],
)
def test_options_become_filters_of_one_stream_each(options: dict[str, object], expected: dict[str, list[str]]) -> None:
    found = choose("r", **{"streams": [], "subjects": [], "types": [], "key": None, **options})  # pyright: ignore[reportArgumentType]
    assert found == expected


def test_filters_that_overlap_are_read_by_one_and_mean_what_they_say() -> None:
    choice = Choice(choose("r", [], ["trace.tool.>", "trace.*.requested.e1", "trace.deadline.>"], [], None))
    reading = choice.reading("trace")
    assert len(reading) == 1
    subjects = ("tool.returned.e2", "tool.requested.e1", "episode.taken.e1", "deadline.neared.e3")
    assert [choice.takes("trace", f"asearch.r.trace.{each}") for each in subjects] == [True, True, False, True]
    apart = Choice(choose("r", [], ["trace.tool.>", "trace.deadline.>"], [], None))
    assert apart.reading("trace") == ["asearch.r.trace.tool.>", "asearch.r.trace.deadline.>"]


def test_a_filter_of_every_stream_reads_each_of_them_once() -> None:
    found = choose("r", [], [">"], [], None)
    assert found["dead"] == ["asearch.r.dead.>"]
    assert len(found) == 6
    assert set(choose("r", [], [], [], None)) == {"plan", "trace", "outcomes", "policy", "dead"}


@pytest.mark.parametrize("bad", ["a..b", "trace.>.x", "", "trace.to ol.>", "trace.t*l.>", "asearch.other.trace.>"])
def test_a_filter_that_is_none_or_of_another_run_is_refused(bad: str) -> None:
    with pytest.raises(InputError):
        choose("r", [], [bad], [], None)
    with pytest.raises(InputError, match="did you mean"):
        choose("r", [], [], ["tool_request"], None)


def test_moments() -> None:
    assert moment(None, NOW_NS) == (None, None)
    assert moment("1200", NOW_NS) == (1200, None)
    assert moment("-5m", NOW_NS) == (None, NOW_NS - 300 * 10**9)
    at = datetime(2026, 11, 21, 15, 24, 29, 250_000, tzinfo=UTC)
    assert moment("2026-11-21T15:24:29.25Z", NOW_NS) == (None, int(at.timestamp() * 1000) * 10**6)
    assert moment("2026-11-21T17:24:29.25+02:00", NOW_NS) == moment("2026-11-21T15:24:29.25Z", NOW_NS)
    for bad in ("soon", "-5", "5m", "2026-13-01", "١٢"):
        with pytest.raises(InputError, match="neither"):
            moment(bad, NOW_NS)


# --- order ---


async def test_messages_are_found_from_the_end_and_merged_by_time() -> None:
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), "r", "operator", platform)
    await bus.ensure_topology()
    for n in range(700):
        await bus.append(call("rare" if n < 3 else "e", n), "rare" if n < 3 else "e")
    await bus.append(dropped("e"), "e")
    assert [each.sequence for each in await last_messages(bus, "trace", ["asearch.r.trace.>"], 2)] == [699, 700]
    assert [each.sequence for each in await last_messages(bus, "trace", ["asearch.r.trace.*.*.rare"], 5)] == [1, 2, 3]
    readers = [bus.read(stream, follow=False) for stream in ("outcomes", "trace")]
    merged = [each async for each in merged_by_time(readers)]
    assert [each.at_ns for each in merged] == sorted(each.at_ns for each in merged)
    assert (len(merged), merged[-1].stream) == (701, "outcomes")
    await bus.close()


def archive_of(folder: Path, episodes: dict[str, list[int]]) -> None:
    """Lines in which every episode has tool calls with these sequences."""
    folder.mkdir()
    lines: list[bytes] = []
    for number, (name, sequences) in enumerate(episodes.items(), 1):
        facts = [call(name, each) for each in sequences]
        entry = ArchivedEpisode(episode=name, sequence=number, outcome=dropped(name), facts=list(facts), sequences=sequences)
        lines.append(msgspec.json.encode(entry) + b"\n")
    (folder / EPISODES).write_bytes(b"".join(lines) + b'{"episode":"cut')


async def test_archived_facts_of_overlapping_episodes_come_in_order_once(tmp_path: Path) -> None:
    archive_of(tmp_path / "archive", {"a": [2, 5, 9], "b": [1, 6], "c": [3, 4, 12]})
    found = list(archived_messages(tmp_path / "archive", "r", "trace"))
    assert [each.sequence for each in found] == [1, 2, 3, 4, 5, 6, 9, 12]
    assert found[0].subject == "asearch.r.trace.tool.requested.b"

    async def stored() -> AsyncGenerator[Stored, None]:
        for sequence in (5, 7, 8):
            yield Stored("trace", "asearch.r.trace.tool.requested.a", sequence, b"", call("a", sequence))

    both = [each async for each in with_archive(iter(found), stored())]
    assert [each.sequence for each in both] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 12]
    assert [isinstance(each, ArchivedMessage) for each in both[3:6]] == [True, False, True]
    assert list(archived_messages(tmp_path / "nothing", "r", "trace")) == []


def test_a_malformed_message_is_shown_as_such() -> None:
    stored = Stored(
        "trace", "asearch.r.trace.tool.requested.e", 4, b"\xff\x1b[31m\xe2\x80\xae", None, "not an event (no_msgpack)", 5
    )
    line = event_line(stored)
    assert "MALFORMED" in line
    assert "\x1b" not in line
    content = event_json(stored)
    assert (content["event"], content["malformed"], content["n_bytes"]) == (None, "not an event (no_msgpack)", 9)


# --- text, logs, help ---


def test_nothing_of_an_episode_reaches_the_terminal_but_text() -> None:
    for full in (False, True):
        text = "\n".join(text_of(hostile_episode(), full=full))
        assert not any(ord(each) < 32 and each not in "\n\t" for each in text)
        assert not any(each in text for each in "\x1b\x7f\x9b\u202e\u2066\u200f")
        assert "\\x1b[2J" in text
        assert "\\u202e" in text
    assert "more characters" in "\n".join(text_of(hostile_episode()))
    assert "more characters" not in "\n".join(text_of(hostile_episode(), full=True))


def test_lines_that_are_about_an_episode(tmp_path: Path) -> None:
    path = tmp_path / "tool-0.log"
    path.write_text(
        '{"episode": "t-1-0", "event": "a", "timestamp": "2026-11-21T15:24:29.5Z"}\n'
        '{"episode": "t-1-00", "event": "b", "about": "t-1-0"}\n'
        '{"event_id": "t-1-0-0-3-tool", "event": "c", "timestamp": "2026-11-21T15:24:30Z"}\n'
        '{"trace_id": "ab", "event": "d"}\n'
        "INFO 2026-11-21 16:24:31,250 +0100 POST /generate t-1-0:g2\n"
        "nothing of it: t-1-01, xt-1-0, t-1-0x\n"
        '{"call": "t-1-0:t1", "event": "cut'
    )
    log = LogFile(path)
    about = About("t-1-0", "ab")
    found = [line for line in log.more() if about(line)]
    assert [line.fields["event"] if line.fields else line.text[-7:] for line in found] == ["a", "c", "d", "t-1-0:g2"[-7:]]
    assert [round(line.at - found[0].at, 2) for line in found] == [0.0, 0.5, 0.5, 1.75]
    with path.open("a") as file:
        file.write(' off"}\n')
    assert [line.fields for line in log.more()] == [{"call": "t-1-0:t1", "event": "cut off"}]


def test_every_command_is_in_the_help_with_an_example_and_exit_codes() -> None:
    told = CliRunner().invoke(cli, ["--help"])
    assert told.exit_code == 0
    places = [told.output.index(f"\n  {name} ") for names in SECTIONS.values() for name in names if name in COMMANDS]
    assert places == sorted(places)
    for name in ("runs", "watch", "episodes", "show", "events", "logs", "export", "completion"):
        one = CliRunner().invoke(cli, [name, "--help"]).output
        assert "Example: " in one
        assert "Exit status: 0" in " ".join(one.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert "_ASEARCH_COMPLETE" in done.output


def test_names_are_completed_from_files(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "archive"
    folder.mkdir(parents=True)
    (tmp_path / "one" / "run.json").write_text("{}")
    lines = [f'{{"sequence":{n},"outcome":{{"id":"x","episode":"t-{n}-0"}}}}\n' for n in range(20_000)]
    (folder / "outcomes.jsonl").write_text("".join(lines))
    found = ended_episodes(tmp_path, None)
    assert found[:2] == ["t-19999-0", "t-19998-0"]
    assert 0 < len(found) <= 20_000
    assert ended_episodes(tmp_path, "two") == []
    environment = {
        "_ASEARCH_COMPLETE": "bash_complete",
        "COMP_WORDS": f"asearch show --runs {tmp_path} t-1999",
        "COMP_CWORD": "4",
    }
    done = CliRunner().invoke(cli, [], env=environment, prog_name="asearch")
    assert "plain,t-19999-0" in done.output.splitlines()
    assert "plain,t-1998-0" not in done.output


# --- output ---


def _piped(words: list[str], root: Path, stdout: int) -> tuple[int, str]:
    command = [sys.executable, "-m", "actors.cli.main", *words, "--runs", str(root)]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", [["doctor", "--quick"], ["behaviour", "--rules"]])
def test_a_reader_that_leaves_ends_a_command_without_a_word(words: list[str], tmp_path: Path, closed_pipe: int) -> None:
    status, said = _piped(words, tmp_path, closed_pipe)
    assert status == 0
    assert said == ""


def test_output_that_cannot_be_written_is_said_without_a_traceback(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        status, said = _piped(["doctor", "--quick"], tmp_path, full.fileno())
    assert status == 1
    assert said == "error: the output cannot be written: No space left on device\n"


def test_an_error_does_not_obey_what_it_quotes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise InputError("no episode 'a\x1b[31mb'")

    monkeypatch.setattr("actors.cli.main.cli", fail)
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda *_: False)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "\x1b[31mb" not in capsys.readouterr().err


def test_what_is_no_matter_of_files_keeps_its_traceback() -> None:
    assert unwritable(OSError(errno.ECONNREFUSED, "refused")) is None
    assert unwritable(FileExistsError(errno.EEXIST, "File exists", "/a/file")) == "/a/file: File exists"


ON_A_RUN = ("archive", "behaviour", "dataset", "down", "episodes", "events", "regrade", "status", "view", "watch")


@pytest.mark.parametrize("name", ON_A_RUN)
def test_every_command_on_a_run_takes_it_by_either_way(name: str, tmp_path: Path) -> None:
    more = ["--format", "sft"] if name == "dataset" else []
    done = CliRunner().invoke(cli, [name, "one", "--run", "other", "--runs", str(tmp_path), *more])
    assert done.exit_code == 2
    assert "name the run once" in done.output


SPARED = {"main": "aiohttp numpy nats", "down": "aiohttp numpy nats tokenizers torch", "status": "numpy tokenizers torch"}


@pytest.mark.parametrize(("name", "spared"), SPARED.items())
def test_commands_that_scripts_call_import_no_more_than_they_need(name: str, spared: str) -> None:
    code = f"import sys, actors.cli.{name}; print(sorted(set({spared.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
