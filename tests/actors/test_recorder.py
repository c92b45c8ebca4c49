"""The recorder archives every ended episode once and purges nothing that is needed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from actors import recorder as module
from actors.recorder import Recorder
from actors.runtime.bus import Stored
from schemas.events import CheckpointCommitted, EpisodeDropped
from tests.actors.conftest import Stage
from tests.actors.test_grader import finished
from tests.runtime.facts import call, dropped, until


class Line(msgspec.Struct):
    """What the tests read of a line of the archive."""

    episode: str
    sequence: int
    facts: list[dict[str, object]]


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


async def test_trace_is_purged_below_the_oldest_open_episode_only(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.0)
    driver = await stage.connect("driver")
    for n, episode in enumerate(["e1", "e1", "e2", "e1", "e3", "e3"]):
        await driver.append(call(episode, n), episode)
    held = await recorder(stage)
    await driver.append(dropped("e1"), "e1", expected=0)
    await until(lambda: held.gauges()["n_purged"] == 2)
    assert [stored.key[-1] for stored in await stage.buses[0].read_key("trace", "e1")] == ["e1"]
    assert len(await stage.facts("trace")) == 4
    await driver.append(dropped("e2"), "e2", expected=0)
    await until(lambda: held.gauges()["n_purged"] == 4)
    await driver.append(finished("e3"), "e3")
    await driver.append(dropped("e3"), "e3", expected=0)
    await until(lambda: held.gauges()["n_purged"] == 7)
    await stage.end(held)
    assert [(line.episode, len(line.facts)) for line in archived(stage)] == [("e1", 3), ("e2", 1), ("e3", 3)]
    assert len(await stage.facts("outcomes", EpisodeDropped)) == 3


async def test_blobs_go_with_the_checkpoint_before_the_newest(stage: Stage) -> None:
    driver, trainer = await stage.connect("driver"), await stage.connect("trainer")
    refs = {}
    for episode in ("e1", "e2"):
        await driver.append(call(episode, 0), episode)
        refs[episode] = await driver.put_blob(episode, b"x" * 1000)
        await driver.append(dropped(episode), episode, expected=0)
    held = await recorder(stage)
    await until(lambda: held.gauges()["n_archived"] == 2)

    async def commit(step: int, watermark: int) -> None:
        event = CheckpointCommitted(id=f"c{step}", model="policy", lineage=1, step=step, path="", watermark=watermark, counted=[])
        await trainer.append(event, "policy")

    await commit(1, 1)
    await commit(2, 2)
    await until(lambda: held.gauges()["n_purged"] >= 1)
    assert await driver.get_blob(refs["e2"]) == b"x" * 1000
    assert (await stage.buses[0].stream_info("blobs")).n_messages == 1
    await commit(3, 2)
    await until(lambda: held.gauges()["n_purged"] >= 2)
    assert (await stage.buses[0].stream_info("blobs")).n_messages == 0
