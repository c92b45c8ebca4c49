"""What the page knows of a run, where something goes wrong: facts that cannot be told, lost tails, a part of it that fails."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.page import answers, board
from actors.page.board import Board, open_board
from actors.page.samples import FILE, Samples
from actors.page.subscribers import Subscriber
from actors.page.watched import WatchedEpisode
from actors.runtime import episode_source
from actors.runtime.memory import MemoryBus
from actors.runtime.run_source import RunSource
from actors.runtime.workspace import Workspace
from asearch.errors import BusError, InputError
from schemas.archive import EPISODES
from schemas.events import EpisodeTaken
from tests.actors.test_ended_episodes import NAMES, recorded
from tests.runtime.facts import requested, until


def bus_of(source: RunSource) -> MemoryBus:
    assert isinstance(source.bus, MemoryBus)
    return source.bus


def boarded(source: RunSource, **options: Any) -> Any:
    return open_board(source, bus_of(source), Workspace(source.run_dir), **options)


def is_shown(subscriber: Subscriber, name: str) -> Callable[[], bool]:
    return lambda: name in subscriber._shown


async def test_an_episode_that_cannot_be_read_any_more_does_not_end_the_page(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    async with boarded(source) as shown:
        watched, looks = await shown.watch(NAMES[0]), Subscriber(source.bus.platform)
        watched.audience.join(looks)
        (tmp_path / "archive").mkdir()
        (tmp_path / "archive" / EPISODES).write_bytes(b'{"episode":"%s","sequence":1,"outc\x00\n' % NAMES[0].encode())
        shown._ended.add(NAMES[0])
        await until(lambda: looks.is_cut_off)
        everything = Subscriber(source.bus.platform)
        shown.audience.join(everything)
        await until(is_shown(everything, "rows"))


async def test_an_outcome_is_told_once_the_broker_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await recorded(tmp_path)
    async with boarded(source) as shown:
        await shown.watch(NAMES[0])
        tries: list[str] = []

        async def catch_up(self: WatchedEpisode) -> None:
            tries.append(self.episode)
            if len(tries) == 1:
                raise BusError("away")

        monkeypatch.setattr(WatchedEpisode, "catch_up", catch_up)
        shown._ended.add(NAMES[0])
        await until(lambda: len(tries) == 2)


async def test_a_fact_that_cannot_be_told_does_not_end_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await recorded(tmp_path)
    async with boarded(source) as shown:
        watched, looks = await shown.watch("open"), Subscriber(source.bus.platform)
        watched.audience.join(looks)

        async def offer(self: WatchedEpisode, stored: Any) -> None:
            raise ValueError("hostile")

        monkeypatch.setattr(WatchedEpisode, "offer", offer)
        for name in ("open", "other"):
            await source.bus.append(requested(name, 0), name)
            taken = EpisodeTaken(id=f"taken-{name}", episode=name, driver="d", attempt=0, request=requested(name, 0))
            await source.bus.append(taken, name)
        shown.need_stages()
        await until(lambda: "other" in shown.rows.rows and shown.rows.rows["other"].stage == "generating")
        assert looks.is_cut_off


async def test_a_board_that_fails_ends_its_block_and_every_feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, looks = await recorded(tmp_path), None

    async def broken(self: Board) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(board, "TICK_S", 0.01)
    with pytest.raises(ExceptionGroup):
        async with boarded(source) as shown:
            looks = Subscriber(source.bus.platform)
            shown.audience.join(looks)
            monkeypatch.setattr(Board, "_follow_trace", broken)
            monkeypatch.setattr(Board, "_tick", broken)
            await asyncio.sleep(5.0)
    assert looks is not None and looks.is_cut_off


async def test_a_defect_in_reading_trace_ends_the_block_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await recorded(tmp_path)
    await source.bus.append(EpisodeTaken(id="taken", episode="open", driver="d", attempt=0, request=requested("open", 0)), "open")

    async def broken(self: Board, stored: Any, *, whole: bool) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(Board, "_take_trace", broken)
    with pytest.raises(ExceptionGroup):
        async with boarded(source) as shown:
            shown.need_stages()
            await asyncio.sleep(5.0)


async def test_the_timeline_is_told_once_also_where_the_broker_lost_a_tail(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    bus = bus_of(source)
    async with boarded(source) as shown:
        marks = [mark["version"] for mark in shown.timeline]
        assert marks == ["1.0", "2.0"]
        report = shown.view.report
        bus.broker.stream("r", "outcomes").lose_tail(1)
        await until(lambda: shown.view.report is not report and len(shown.timeline) == 2)
        assert [mark["version"] for mark in shown.timeline] == marks


async def test_stages_are_known_again_where_the_broker_lost_a_tail_of_another_stream(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    bus = bus_of(source)
    await bus.append(EpisodeTaken(id="taken", episode="open", driver="d", attempt=0, request=requested("open", 0)), "open")
    async with boarded(source) as shown:
        shown.need_stages()
        looks = Subscriber(bus.platform)
        shown.audience.join(looks)
        await until(lambda: shown.rows.rows["open"].stage == "generating")
        rows = shown.rows
        bus.broker.stream("r", "outcomes").lose_tail(1)
        await until(lambda: shown.rows is not rows and "open" in shown.rows.rows)
        taken = EpisodeTaken(id="late", episode=NAMES[0], driver="d", attempt=9, request=requested(NAMES[0], 0))
        await bus.append(taken, NAMES[0])
        await until(lambda: shown.rows.rows["open"].stage == "generating")


async def test_names_that_are_asked_for_and_are_not_there_leave_nothing(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    async with boarded(source) as shown:
        for number in range(3):
            with pytest.raises(InputError):
                await shown.watch(f"none-{number}")
        assert not shown._looked_s and not shown._watched


async def test_an_episode_is_answered_without_the_broker_that_knows_its_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_source, "KEY_S", 0.05)
    monkeypatch.setattr(answers, "TRAINED_S", 0.05)
    source = await recorded(tmp_path)
    async with boarded(source) as shown:

        async def silent(*_: Any) -> None:
            await asyncio.sleep(30.0)

        await shown.watch(NAMES[0])
        monkeypatch.setattr(source.bus, "get_last", silent)
        async with asyncio.timeout(5.0):
            found = await answers.episode(shown, NAMES[0])
        assert found["key"] is None and found["items"][-1]["kind"] == "outcome"


def test_one_process_keeps_the_samples_of_a_run(tmp_path: Path) -> None:
    kept, other = Samples(tmp_path), Samples(tmp_path, keeps=False)
    kept.add({"at_ns": 1})
    other.add({"at_ns": 2})
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 1 and other.kept == [{"at_ns": 2}]
