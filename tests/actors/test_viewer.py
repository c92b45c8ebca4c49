"""The viewer as a server: what it answers, whom it refuses, and feeds that lose and repeat nothing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yarl

from actors.driver import Driver
from actors.grader import Grader
from actors.page import subscribers
from actors.page.board import open_board
from actors.page.boards import Boards
from actors.page.safety import CSP
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, read_url, write_run_file
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import Process, Workspace
from actors.tool import Tool
from actors.viewer import Viewer
from asearch.tools.base import ToolSet
from schemas.events import AnswerKeyStored, EpisodeGraded, GroupVerdict, StepTrained
from schemas.records import AnswerKey
from tests.actors.acting import ActingEngine, search_then_answer
from tests.actors.conftest import Stage
from tests.actors.test_driver import request
from tests.sim.faults import Troubles
from tests.sim.parts import ScriptedTool
from tests.sim.scenario import SETTINGS

VIEWED = msgspec.structs.replace(SETTINGS, viewer=msgspec.structs.replace(SETTINGS.viewer, port=0))


def run_file(stage: Stage, model_dir: str) -> RunFile:
    me = Process.own()
    return RunFile(
        run=stage.run,
        settings=VIEWED,
        broker_url=stage.broker.url,
        corpus_url="http://127.0.0.1:1",
        model_dir=model_dir,
        train_tasks="",
        eval_tasks="",
        weights_dir="",
        supervisor_pid=me.pid,
        supervisor_started=me.started,
    )


@dataclass
class Served:
    """A viewer that serves, and a client of it."""

    stage: Stage
    model_dir: str
    client: aiohttp.ClientSession
    viewer: Viewer | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return read_url(self.stage.folder)

    async def serve(self) -> None:
        self.viewer = Viewer(await self.stage.context("viewer-0", VIEWED), run_file(self.stage, self.model_dir))
        await self.stage.start(self.viewer)

    async def get(self, path: str, **options: Any) -> Any:
        async with self.client.get(f"{self.url}api/runs/{self.stage.run}{path}", **options) as answer:
            return await answer.json()

    @asynccontextmanager
    async def feed(self, path: str, position: str = "") -> AsyncIterator["Feed"]:
        headers = {"Last-Event-ID": position} if position else {}
        async with self.client.get(f"{self.url}api/runs/{self.stage.run}{path}", headers=headers) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Content-Security-Policy"] == CSP
            yield Feed(answer)

    async def play(self, episode: str) -> None:
        """A whole episode by a real driver, tool and grader."""
        stage = self.stage
        bus = stage.buses[0]
        engine_bus = await stage.connect("engine")
        driver = Driver(await stage.context("driver-0"), self.model_dir)
        engine = await ActingEngine(engine_bus, "engine-0", driver._agent._tokenizer, search_then_answer).start()
        await stage.start(driver)
        tool = ScriptedTool("search", Troubles(0))
        await stage.start(Tool(await stage.context("tool-0"), "", tools=ToolSet(tool)))
        await bus.append(AnswerKeyStored(id="k", key=AnswerKey(task="task", answers=["red"])), "task")
        await bus.append(request(episode), episode)
        await stage.start(Grader(await stage.context("grader-0")))
        await stage.wait_for("outcomes", EpisodeGraded)
        engine.stop_beating()


class Feed:
    """A reader of server-sent events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.position = ""

    async def next(self, kind: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """The data of the next event of a kind."""
        found, data = "", b""
        async with asyncio.timeout(timeout_s):
            while True:
                read = await self._answer.content.readline()
                if not read:
                    raise EOFError
                line = read.rstrip(b"\n")
                if line.startswith(b"event: "):
                    found = line[7:].decode()
                elif line.startswith(b"id: "):
                    self.position = line[4:].decode()
                elif line.startswith(b"data: "):
                    data = line[6:]
                elif not line and found == kind:
                    return json.loads(data)
                elif not line:
                    found = ""

    async def items(self, until: str = "outcome") -> list[dict[str, Any]]:
        """Items up to one of a kind."""
        found: list[dict[str, Any]] = []
        while not found or found[-1]["kind"] != until:
            found.append(await self.next("item"))
        return found


@pytest.fixture
async def served(stage: Stage, model_dir: str) -> AsyncIterator[Served]:
    (stage.folder / "logs").mkdir(exist_ok=True)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 22) as client:
        held = Served(stage, model_dir, client)
        await held.serve()
        yield held


async def test_an_episode_is_told_as_it_happens_and_once(served: Served) -> None:
    bus = served.stage.buses[0]
    await bus.append(request("e1"), "e1")
    async with served.feed("/episodes/e1/feed") as feed:
        await served.play("e1")
        items = await feed.items()
    kinds = [item["kind"] for item in items]
    assert kinds == ["shown", "taken", "tokens", "called", "returned", "shown", "tokens", "finished", "outcome"]
    assert items[2]["text"] == " so </think> <search> red </search>"
    assert items[2]["versions"] == [{"version": "1.0", "start": 0, "end": items[2]["n"]}]
    assert items[-1]["reward"] == 1.0 and items[-1]["parts"]
    assert len({item["id"] for item in items}) == len(items)
    async with served.client.get(f"{served.url}api/runs/{served.stage.run}/export/e1.html") as answer:
        text = await answer.text()
        assert (
            "unsafe-inline" in answer.headers["Content-Security-Policy"]
            and "script-src" not in answer.headers["Content-Security-Policy"]
        )
    assert "Which colour is it?" in text and "<script" not in text
    page = await served.get("/episodes/e1")
    assert page["items"] == items
    assert page["key"]["answers"] == ["red"] and page["row"]["correct"] is True
    assert len(page["trace_id"]) == 32


async def test_a_feed_goes_on_where_it_was_also_in_another_life_of_the_viewer(served: Served) -> None:
    await served.play("e1")
    async with served.feed("/episodes/e1/feed") as feed:
        first = [await feed.next("item") for _ in range(4)]
        position = feed.position
    assert served.viewer is not None
    port = served.url
    await served.stage.kill(served.viewer)
    await served.serve()
    assert served.url == port
    async with served.feed("/episodes/e1/feed", position) as feed:
        rest = await feed.items()
    async with served.feed("/episodes/e1/feed") as feed:
        assert [*first, *rest] == await feed.items()


async def test_a_position_of_another_history_begins_anew(served: Served) -> None:
    await served.play("e1")
    async with served.feed("/episodes/e1/feed", "3:of-another-driver") as feed:
        assert await feed.next("reset") == {}
        assert (await feed.items())[0]["kind"] == "shown"


async def test_rows_follow_an_episode_to_its_fate(served: Served) -> None:
    await served.play("e1")
    async with served.feed("/feed") as feed:
        state = await feed.next("run")
        assert state["report"]["accounting"]["graded"] == 1
        await served.stage.buses[0].append(
            StepTrained(
                **{"id": "s", "model": "policy", "lineage": 1, "step": 0, "n_tokens_trained": 5, "n_tokens_masked_stale": 0},
                verdicts=[GroupVerdict(group="g", episodes=1)],
                staleness={0: 5},
                n_tokens_discarded=0,
                empty=False,
                metrics={"lr": 1.0},
            ),
            "policy",
        )
        state = await feed.next("run")
    assert state["report"]["accounting"]["counted"] == 1
    window = await served.get("/episodes", params={"fate": "counted", "text": "COLOUR", "min_reward": "0.5"})
    assert [row["episode"] for row in window["rows"]] == ["e1"] and window["n_matching"] == 1
    assert (await served.get("/episodes", params={"correct": "false"}))["n_matching"] == 0
    (point,) = (await served.get("/curve"))["points"]
    assert point["reward"] == 1.0 and point["metrics"] == {"lr": 1.0}
    group = await served.get("/groups/g")
    assert group["members"][0]["turns"][0]["argument"] == "red" and group["members"][0]["advantage"] == 0.0


async def test_tokens_say_what_was_sampled_and_trained(served: Served) -> None:
    await served.play("e1")
    (segment,) = (await served.get("/episodes/e1/tokens"))["segments"]
    assert "".join(segment["tokens"]).startswith("Question: Which colour is it?")
    assert len(segment["ids"]) == len(segment["mask"]) == len(segment["logprobs"]) == len(segment["tokens"])
    assert [value is not None for value in segment["logprobs"]] == [bool(mask) for mask in segment["mask"]]


async def test_what_is_not_there_is_named(served: Served) -> None:
    async with served.client.get(f"{served.url}api/runs/none") as answer:
        assert answer.status == 404 and "no run 'none'" in (await answer.json())["error"]
    assert "no episode 'e1'" in (await served.get("/episodes/e1"))["error"]
    assert "did you mean 'stage'" in (await served.get("/episodes", params={"stagee": "x"}))["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/curve?after=--5",
        "/curve?after=" + "9" * 5000,
        "/samples?after_ns=" + "9" * 5000,
        "/samples?after_ns=%C2%B2",
        "/episodes?offset=-1",
    ],
)
async def test_numbers_that_are_none_are_as_good_as_left_out(served: Served, path: str) -> None:
    async with served.client.get(f"{served.url}api/runs/{served.stage.run}{path}") as answer:
        assert answer.status == 200


async def test_names_that_are_none_are_not_there(served: Served) -> None:
    for path, status in (
        (f"{served.stage.run}/episodes/..%2fx", 404),
        (f"{served.stage.run}/episodes/%3E/tokens", 404),
        (f"{served.stage.run}/episodes/a.b%20c/feed", 404),
        (f"..%2f{served.stage.folder.name}", 400),
    ):
        async with served.client.get(yarl.URL(f"{served.url}api/runs/{path}", encoded=True)) as answer:
            assert answer.status == status, path


async def test_a_feed_begins_anew_for_a_position_that_is_none(served: Served) -> None:
    await served.play("e1")
    for position in ("9" * 5000 + ":x", "-1:x", "garbage"):
        async with served.feed("/episodes/e1/feed", position) as feed:
            assert (await feed.items())[0]["id"] == "opening"


async def test_other_runs_are_looked_for_where_the_broker_is_now(stage: Stage, model_dir: str, tmp_path: Path) -> None:
    """A broker that was started again to look at ended runs is on another port than `run.json` says."""
    content = msgspec.structs.replace(run_file(stage, model_dir), broker_url="nats://127.0.0.1:1")
    other = msgspec.structs.replace(content, run=f"{stage.run}-b")
    (tmp_path / other.run).mkdir()
    write_run_file(tmp_path / other.run, other)
    for run in (content.run, other.run):
        bus = await connect(stage.broker.url, run, "scheduler", SystemPlatform())
        stage.buses.append(bus)
        await bus.ensure_topology()
    source = RunSource(content, stage.folder, stage.buses[-2])
    source.url = stage.broker.url
    async with open_board(source, stage.buses[-2], Workspace(tmp_path)) as own:
        boards = Boards(own, Workspace(tmp_path), SystemPlatform())
        assert (await boards.board(other.run)).source.run == other.run
        await boards.close()


async def test_only_reading_on_loopback_names_is_answered_and_always_with_the_policy(served: Served) -> None:
    for path, status in (
        ("", 200),
        ("api/runs", 200),
        ("healthz", 200),
        ("metrics", 200),
        ("nothing", 404),
        ("static/../x", 404),
    ):
        async with served.client.get(f"{served.url}{path}") as answer:
            assert answer.status == status, path
            assert answer.headers["Content-Security-Policy"] == CSP
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    async with served.client.get(served.url, headers={"Host": "evil.example"}) as answer:
        assert answer.status == 403
    async with served.client.post(f"{served.url}api/runs") as answer:
        assert answer.status == 405


async def test_who_does_not_read_is_cut_off_and_others_do_not_notice(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "MAX_WAITING", 8)
    monkeypatch.setattr(subscribers, "WRITE_TIMEOUT_S", 0.5)
    await served.play("e1")
    assert served.viewer is not None
    board = served.viewer._board
    assert board is not None
    host, port = served.url.removeprefix("http://").rstrip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(f"GET /api/runs/{served.stage.run}/feed HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    async with served.feed("/feed") as feed:
        await feed.next("run")
        async with asyncio.timeout(30.0):
            while len(board.audience) == 2:
                board.audience.show("run", subscribers.sse("run", b'"' + b"x" * (4 << 20) + b'"'))
                await asyncio.sleep(0.1)
        assert len(board.audience) == 1
        board.audience.show("run", subscribers.sse("run", b'{"still": true}'))
        async with asyncio.timeout(20.0):
            while await feed.next("run") != {"still": True}:
                pass
    writer.close()
    del reader


async def test_a_story_longer_than_what_may_wait_comes_in_parts(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.play("e1")
    async with served.feed("/episodes/e1/feed") as feed:
        whole = [item["id"] for item in await feed.items()]
    monkeypatch.setattr(subscribers, "MAX_WAITING", 3)
    found: list[str] = []
    position = ""
    async with asyncio.timeout(20.0):
        while len(found) < len(whole):
            async with served.feed("/episodes/e1/feed", position) as feed:
                with contextlib.suppress(EOFError):
                    while len(found) < len(whole):
                        found.append((await feed.next("item"))["id"])
                position = feed.position
    assert found == whole


async def test_a_board_that_closes_ends_its_feeds(served: Served) -> None:
    assert served.viewer is not None
    async with served.feed("/feed") as feed:
        await feed.next("run")
        assert served.viewer._board is not None
        served.viewer._board.close()
        with pytest.raises(EOFError):
            while True:
                await feed.next("run", timeout_s=5.0)


async def test_a_broker_that_is_silent_is_not_waited_for_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.page import server

    async def silent(*_: Any) -> None:
        await asyncio.sleep(30.0)

    monkeypatch.setattr(server, "ANSWER_S", 0.1)
    assert served.viewer is not None and served.viewer._board is not None
    monkeypatch.setattr(served.viewer._board.source, "record", silent)
    for path in ("/episodes/e1", "/episodes/e1/feed", "/episodes/e1/tokens"):
        async with served.client.get(f"{served.url}api/runs/{served.stage.run}{path}") as answer:
            assert answer.status == 503


def test_a_slow_reader_costs_no_more_than_its_bound() -> None:
    slow = subscribers.Subscriber(SystemPlatform())
    for number in range(subscribers.MAX_WAITING + 10):
        slow.put(b"%d" % number)
        slow.show("run", b"newest")
    assert slow.is_cut_off
    assert len(slow._waiting) == subscribers.MAX_WAITING and len(slow._shown) == 1


async def test_samples_are_kept_and_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.page import samples

    monkeypatch.setattr(samples, "MAX_SAMPLES", 8)
    kept = samples.Samples(tmp_path)
    for number in range(40):
        kept.add({"at_ns": number})
    assert len(kept.kept) <= 8 and kept.kept[0] == {"at_ns": 0} and kept.kept[-1]["at_ns"] >= 32
    again = samples.Samples(tmp_path)
    again.read()
    assert again.kept == kept.kept
