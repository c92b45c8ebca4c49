"""The recorder archives every ended episode once and purges nothing that is needed."""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import recorder as module
from actors.recorder import Recorder
from actors.runtime import archive
from actors.runtime.actor import Context
from actors.runtime.archive import EpisodeNames, LineFile, SecondRecorderError, read_outcomes
from actors.runtime.bus import Bus, Stored
from actors.runtime.episode_lines import damaged
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.outcomes import append_outcome
from actors.runtime.platform import SystemPlatform
from schemas.archive import archived_outcome
from schemas.events import (
    CheckpointCommitted,
    EpisodeDropped,
    EventRefused,
    PlanFolded,
    ToolReturned,
    TrainerClaimed,
)
from schemas.records import BlobRef
from tests.actors.conftest import Stage
from tests.actors.test_grader import finished
from tests.runtime.facts import call, dropped, requested, until
from tests.sim.scenario import SETTINGS


class Line(msgspec.Struct):
    """What the tests read of a line of the archive."""

    episode: str
    sequence: int
    facts: list[dict[str, object]]
    sequences: list[int]


def archived(stage: Stage) -> list[Line]:
    path = stage.folder / "archive" / "episodes.jsonl"
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


async def recorder(stage: Stage) -> Recorder:
    held = Recorder(await stage.context("recorder-0"))
    await stage.start(held)
    return held


async def test_every_ended_episode_is_archived_once_across_restarts(stage: Stage) -> None:
    driver = await stage.connect("driver")
    for episode in ("e1", "e2", "e3"):
        await driver.append(call(episode, 0), episode)
        await driver.append(call(episode, 1), episode)
    await driver.append(dropped("e1"), "e1", expected=0)
    first = await recorder(stage)
    await until(lambda: first.gauges()["n_archived"] == 1)
    await stage.end(first)
    with (stage.folder / "archive" / "episodes.jsonl").open("ab") as file:
        file.write(b'{"episode":"e2","sequ')
    await driver.append(dropped("e2"), "e2", expected=0)
    second = await recorder(stage)
    await until(lambda: second.gauges()["n_archived"] == 2)
    await stage.end(second)
    assert [(line.episode, line.sequence, len(line.facts)) for line in archived(stage)] == [("e1", 1, 2), ("e2", 2, 2)]
    assert [line.sequences for line in archived(stage)] == [[1, 2], [3, 4]], "where the facts stood in TRACE"
    assert [damaged(line) for line in (stage.folder / "archive" / "episodes.jsonl").read_bytes().splitlines()] == [[], []]


async def test_the_facts_of_a_dropped_episode_are_archived_whole(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read through another reader than its outcome, which may be far behind."""
    driver = await stage.connect("driver")
    for n in range(20):
        await driver.append(call("e1", n), "e1")
    await driver.append(dropped("e1"), "e1", expected=0)
    context = await stage.context("recorder-0")
    read = context.bus.read

    async def late(stream: str, **named: Any) -> AsyncGenerator[Stored]:
        async with aclosing(read(stream, **named)) as reader:
            async for stored in reader:
                await asyncio.sleep(0.02 if stream == "trace" else 0.0)
                yield stored

    monkeypatch.setattr(context.bus, "read", late)
    held = Recorder(context)
    await stage.start(held)
    await until(lambda: held.gauges()["n_archived"] == 1)
    await stage.end(held)
    assert [len(line.facts) for line in archived(stage)] == [20]


async def ask(stage: Stage, *episodes: str) -> None:
    scheduler = await stage.connect("scheduler")
    for episode in episodes:
        await scheduler.append(requested(episode, 0), episode)


async def held_by(stage: Stage, stream: str) -> list[str]:
    """The episodes whose messages a stream holds."""
    async with aclosing(stage.buses[0].read(stream, follow=False)) as reader:
        return [stored.key[0] async for stored in reader]


async def test_trace_is_purged_below_the_oldest_open_episode_only(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.05)
    driver = await stage.connect("driver")
    await ask(stage, "e1", "e2", "e3")
    for n, episode in enumerate(["stranger", "e1", "e1", "e2", "e1", "e3", "e3"]):
        await driver.append(call(episode, n), episode)
    held = await recorder(stage)
    await driver.append(dropped("e1"), "e1", expected=0)
    await until(lambda: held.gauges()["n_purged"] == 3)
    assert await held_by(stage, "trace") == ["e2", "e1", "e3", "e3"]
    await driver.append(dropped("e2"), "e2", expected=0)
    await until(lambda: held.gauges()["n_purged"] == 5)
    await driver.append(finished("e3"), "e3")
    await driver.append(dropped("e3"), "e3", expected=0)
    await until(lambda: held.gauges()["n_purged"] == 8)
    await stage.end(held)
    assert [(line.episode, len(line.facts)) for line in archived(stage)] == [("e1", 3), ("e2", 1), ("e3", 3)]
    assert len(await stage.facts("outcomes", EpisodeDropped)) == 3


class Checkpoints:
    """Says what trainer and scheduler say after a step."""

    def __init__(self, trainer: Bus, scheduler: Bus) -> None:
        self._trainer, self._scheduler, self._n = trainer, scheduler, 0

    async def commit(self, step: int, watermark: int) -> None:
        self._n += 1
        fact = CheckpointCommitted(
            id=f"c{self._n}", model="policy", lineage=1, step=step, path="", watermark=watermark, counted=[]
        )
        await self._trainer.append(fact, "policy")

    async def claim(self, step: int) -> None:
        self._n += 1
        fact = TrainerClaimed(id=f"c{self._n}", model="policy", lineage=self._n, step=step, checkpoint="c", trainer="t")
        await self._trainer.append(fact, "policy")

    async def fold(self, watermark: int) -> None:
        name, run = f"f{watermark}", self._scheduler.run
        fact = PlanFolded(
            id=name, run=run, watermark=watermark, step=0, settled=[], closed_slots=[], refills={}, open={}, evaluations={}
        )
        await self._scheduler.append(fact, run)


async def test_outcomes_and_blobs_go_up_to_what_nobody_has_to_read_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.05)
    driver = await stage.connect("driver")
    say = Checkpoints(await stage.connect("trainer"), await stage.connect("scheduler"))
    names = [f"e{n}" for n in range(1, 7)]
    await ask(stage, *names)
    for episode in names:
        await driver.append(call(episode, 0), episode)
        await driver.put_blob(episode, b"x" * 1000)
        await driver.append(dropped(episode), episode, expected=0)
    held = await recorder(stage)

    async def left(*expected: str) -> None:
        async with asyncio.timeout(10.0):
            while await held_by(stage, "outcomes") != list(expected) or await held_by(stage, "blobs") != list(expected):  # noqa: ASYNC110 -- a purge has no event
                await asyncio.sleep(0.02)

    await say.fold(2)
    await say.commit(1, 3)
    await say.commit(2, 4)
    await left("e3", "e4", "e5", "e6")
    await say.fold(6)
    await left("e4", "e5", "e6")
    await say.commit(3, 6)
    await left("e5", "e6")
    # A trainer that goes back to the checkpoint of step 1 makes those after it void: the next is one of two at most.
    await say.claim(1)
    await say.commit(4, 6)
    await until(lambda: held.gauges()["n_archived"] == 6)
    await stage.end(held)
    assert await held_by(stage, "outcomes") == ["e5", "e6"]
    read = [(line.sequence, line.outcome) for line in read_outcomes(stage.folder / "archive" / "outcomes.jsonl")]
    assert read == [(n, dropped(episode)) for n, episode in enumerate(names, 1)]


async def test_payloads_that_lie_nowhere_else_are_archived(stage: Stage) -> None:
    driver = await stage.connect("driver")
    page, texts = await driver.put_blob("e1", b"page" * 1000), await driver.put_blob("e1", b"texts" * 1000)
    gone = BlobRef(episode="e1", hash="0" * 32, size_bytes=1, n_chunks=1)
    returned = ToolReturned(id="r", episode="e1", call="0", turn=0, blob=page)
    await driver.append(returned, "e1")
    await driver.append(msgspec.structs.replace(returned, id="r2", blob=gone), "e1")
    await driver.append(finished("e1", generated=[], generated_blob=texts), "e1")
    await driver.append(dropped("e1"), "e1", expected=0)
    held = await recorder(stage)
    await until(lambda: held.gauges()["n_archived"] == 1)
    await stage.end(held)
    files = {path.name: path.read_bytes() for path in (stage.folder / "archive" / "blobs").iterdir()}
    assert files == {page.hash: b"page" * 1000, texts.hash: b"texts" * 1000}
    assert held.gauges()["n_blobs_missing"] == 1


async def test_a_kill_between_the_two_files_leaves_both_whole(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = await stage.connect("driver")
    for episode in ("e1", "e2"):
        await driver.append(call(episode, 0), episode)
        await driver.append(dropped(episode), episode, expected=0)
    context = await stage.context("recorder-0")

    async def crash(name: str) -> None:
        if name == "recorder.archived":
            raise RuntimeError("killed")

    monkeypatch.setattr(context.platform, "fault", crash)
    first = Recorder(context)
    await stage.start(first)
    with pytest.raises(ExceptionGroup):
        await stage.task(first)
    assert [line.episode for line in archived(stage)] == ["e1"]
    second = await recorder(stage)
    await until(lambda: second.gauges()["n_archived"] == 2)
    await stage.end(second)
    assert [line.episode for line in archived(stage)] == ["e1", "e2"]
    assert [line.sequence for line in read_outcomes(stage.folder / "archive" / "outcomes.jsonl")] == [1, 2]


async def test_what_is_no_outcome_is_archived_as_it_is_and_buried(stage: Stage) -> None:
    driver = await stage.connect("driver")
    await driver.append(finished("e1"), "e1")
    client = await nats.connect(stage.broker.url)
    await client.jetstream().publish(f"asearch.{stage.run}.outcomes.episode.dropped.e1", b"noise")
    await client.jetstream().publish(f"asearch.{stage.run}.trace.noise", b"noise")
    await client.close()
    await append_outcome(driver, dropped("e1"))
    held = await recorder(stage)
    await stage.wait_for("dead", EventRefused, n=2)
    await until(lambda: held.gauges()["n_archived"] == 1)
    await stage.end(held)
    first, second = read_outcomes(stage.folder / "archive" / "outcomes.jsonl")
    assert (first.sequence, first.outcome, first.data) == (1, None, b"noise")
    assert (second.sequence, second.outcome, second.data) == (2, dropped("e1"), None)


async def test_of_two_recorders_one_exits(stage: Stage) -> None:
    driver = await stage.connect("driver")
    first, second = await recorder(stage), await recorder(stage)
    await driver.append(call("e1", 0), "e1")
    await driver.append(dropped("e1"), "e1", expected=0)
    async with asyncio.timeout(10.0):
        done, _ = await asyncio.wait([stage.task(first), stage.task(second)], return_when=asyncio.FIRST_COMPLETED)
    error = done.pop().exception()
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(SecondRecorderError) is not None
    assert [line.episode for line in archived(stage)] == ["e1"]


async def test_a_full_disk_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is taken back; nothing is lost, and the actor says what it waits for."""
    monkeypatch.setattr(module, "DISK_RETRY_S", 0.05)
    full, write = [True], os.write

    def small(fd: int, data: Any) -> int:
        if not full[0]:
            return write(fd, data)
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, bytes(data[: len(data) // 2]))

    driver = await stage.connect("driver")
    held = await recorder(stage)
    monkeypatch.setattr(archive.os, "write", small)
    await driver.append(call("e1", 0), "e1")
    await driver.append(dropped("e1"), "e1", expected=0)
    await until(lambda: "space on the disk" in held.waiting_for)
    assert (stage.folder / "archive" / "episodes.jsonl").read_bytes() == b""
    full[0] = False
    await until(lambda: held.gauges()["n_archived"] == 1)
    assert held.waiting_for == ""
    await stage.end(held)
    assert [line.episode for line in archived(stage)] == ["e1"]


async def test_a_lost_tail_of_trace_is_folded_again(tmp_path: Path) -> None:
    broker = MemoryBroker(SystemPlatform(0))
    bus = MemoryBus(broker, "r", "recorder", SystemPlatform(0))
    await bus.ensure_topology()
    held = Recorder(Context("r", tmp_path, SETTINGS, bus, bus.platform, "recorder-0"))
    task = asyncio.create_task(held.run(2.0))
    for n, episode in enumerate(["e1", "e2", "e3"]):
        await bus.append(call(episode, n), episode)
    await until(lambda: held.gauges()["n_open"] == 3)
    broker.stream("r", "trace").lose_tail(2)
    await until(lambda: held.gauges()["n_open"] == 1)
    await bus.append(call("e4", 0), "e4")
    await bus.append(dropped("e4"), "e4", expected=0)
    await until(lambda: held.gauges()["n_archived"] == 1)
    held.stop()
    await task


async def test_an_archive_that_is_ahead_of_the_broker_is_refused(stage: Stage) -> None:
    folder = stage.folder / "archive"
    folder.mkdir()
    (folder / "outcomes.jsonl").write_bytes(msgspec.json.encode(archived_outcome(7, dropped("e7"), b"")) + b"\n")
    held = Recorder(await stage.context("recorder-0"))
    task = asyncio.create_task(held.run(2.0))
    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert "OUTCOMES ends at 0" in str(caught.value.exceptions[0])


def test_a_file_of_lines_is_whole_wherever_its_writer_was_killed(tmp_path: Path) -> None:
    """Cut at every byte, with zeros in place of what was not synced, or as it is."""
    lines = [msgspec.json.encode({"sequence": n, "text": "x" * n}) for n in (1, 5, 9)]
    whole = b"".join(line + b"\n" for line in lines)

    def sequence_of(line: bytes) -> int:
        return msgspec.json.decode(line)["sequence"]

    for cut in range(len(whole) + 1):
        for end in (whole[:cut], whole[:cut] + b"\0" * 20, whole[:cut] + b"\0\n"):
            path = tmp_path / "file.jsonl"
            path.write_bytes(end)
            file = LineFile(path, sequence_of)
            file.open()
            n_whole = whole[:cut].count(b"\n")
            assert file.last == [0, 1, 5, 9][n_whole]
            file.append(11, lines[0])
            assert path.read_bytes().splitlines() == [*lines[:n_whole], lines[0]]


@given(st.lists(st.tuples(st.sampled_from(["t-1-0", "e-before-3", "x", "07", ""]), st.integers(0, 40)), max_size=60))
def test_names_of_episodes_are_a_set(drawn: list[tuple[str, int]]) -> None:
    names, told = EpisodeNames(), set[str]()
    for group, member in drawn:
        name = f"{group}-{member}" if member % 7 else f"{group}0{member}"
        assert (name in names) == (name in told)
        names.add(name)
        told.add(name)
    assert len(names) == len(told)
    assert all(name in names for name in told)
