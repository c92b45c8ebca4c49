"""What cannot be read or handled: who hears of it, who buries it, and that everything else goes on."""

import asyncio
import math
import struct
from typing import Any

import pytest

from actors import driver as driver_module
from actors.recorder import Recorder
from actors.runtime import actor as base
from actors.runtime import engines
from actors.runtime.batches import BatchFeed
from actors.runtime.bus import Incoming, Scope
from actors.runtime.episode_run import EpisodeRun
from actors.scheduler import Scheduler
from actors.tool import Tool
from asearch.learning.rules import ledger_rules
from asearch.models.tokenizer import Tokenizer
from schemas import topology
from schemas.codec import encode
from schemas.commands import Received, ToolReply
from schemas.events import (
    BlobStored,
    EpisodeDead,
    EpisodeDropped,
    EpisodeFinished,
    EpisodeGraded,
    Event,
    EventRefused,
    GroupAdmitted,
    PolicyPublished,
    ToolRequested,
)
from schemas.records import BlobRef, Column, Reward, Segment, Trajectory, Version, VersionRun
from tests.actors.acting import answer
from tests.actors.conftest import Stage
from tests.actors.test_driver import Cast, request
from tests.actors.test_scheduler import TASKS, TRAIN_ONLY, publish
from tests.runtime.facts import call, until
from tests.sim.scenario import SETTINGS

NOISE = b"\xc1 no event"


async def inject(stage: Stage, kind: type[Event], *key: str) -> None:
    bus = await stage.connect("operator")
    await bus.append_bytes(topology.subject(stage.run, kind, *key), NOISE, f"noise-{kind.__name__}-{key}")


class Broken:
    """Tools that cannot be called."""

    async def call(self, *_: Any, **__: Any) -> None:
        raise ValueError("what is this")


async def test_a_call_that_always_fails_is_answered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "RETRY_DELAY_S", 0.02)
    driver = await stage.connect("driver")
    heard: asyncio.Queue[ToolReply] = asyncio.Queue()

    async def on_reply(incoming: Incoming) -> None:
        assert isinstance(incoming.message, ToolReply)
        heard.put_nowait(incoming.message)
        await incoming.reply(Received())

    await driver.subscribe(ToolReply, "driver-0", on_reply)
    asked = call("e1", 0)
    fields = {name: getattr(asked, name) for name in asked.__struct_fields__}
    await driver.append(ToolRequested(**fields | {"reply_to": driver.core_subject(ToolReply, "driver-0")}), "e1")
    await stage.start(Tool(await stage.context("tool-0"), "", Broken()))  # type: ignore[arg-type]
    async with asyncio.timeout(10.0):
        reply = await heard.get()
    assert (reply.call, reply.result.error) == ("0", "retryable")
    (refused,) = await stage.wait_for("dead", EventRefused)
    assert "what is this" in refused.reason  # type: ignore[attr-defined]


async def test_an_episode_that_breaks_its_driver_is_dead_and_the_others_go_on(
    stage: Stage, model_dir: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LOST_AFTER_S", 0.8)
    monkeypatch.setattr(driver_module, "LEASE_S", 0.2)
    finish = EpisodeRun._finish

    async def breaks(self: EpisodeRun, *args: Any) -> None:
        if self.request.episode == "e1":
            raise ValueError("what is this")
        await finish(self, *args)

    monkeypatch.setattr(EpisodeRun, "_finish", breaks)
    cast = Cast(stage, model_dir, tokenizer)
    await cast.engine(answer)
    held = await cast.driver()
    await cast.ask(request(), request("e2"))
    await stage.wait_for("trace", EpisodeFinished)
    (outcome,) = await stage.wait_for("outcomes")
    assert isinstance(outcome, EpisodeDead)
    assert (outcome.episode, outcome.reason) == ("e1", "poison")
    assert "what is this" in outcome.message
    await until(lambda: held.gauges()["n_episodes"] == 0)


async def test_the_recorder_buries_what_is_no_fact_in_every_stream_that_it_reads(stage: Stage) -> None:
    await stage.start(Recorder(await stage.context("recorder-0")))
    places = [
        (ToolRequested, ("e1",)),
        (EpisodeDropped, ("e1",)),
        (PolicyPublished, ("policy",)),
        (BlobStored, ("e1", "h", "0")),
    ]
    for kind, key in places:
        await inject(stage, kind, *key)
    found = await stage.wait_for("dead", EventRefused, n=4)
    assert {event.stream for event in found} == {"trace", "outcomes", "policy", "blobs"}  # type: ignore[attr-defined]
    assert all(event.data == NOISE and event.reason for event in found)  # type: ignore[attr-defined]


async def test_the_scheduler_buries_what_is_no_fact_in_the_plan(stage: Stage) -> None:
    """What was there before it started, and what comes in between its appends."""
    await inject(stage, GroupAdmitted, "before")
    held = Scheduler(await stage.context("scheduler-0", TRAIN_ONLY), TASKS, [])
    await stage.start(held)
    await inject(stage, GroupAdmitted, "between")
    await publish(stage)
    found = await stage.wait_for("dead", EventRefused, n=2)
    assert [event.subject.rpartition(".")[2] for event in found] == ["before", "between"]  # type: ignore[attr-defined]
    assert {event.stream for event in found} == {"plan"}  # type: ignore[attr-defined]
    await stage.end(held)


def segment(**changed: Column) -> Segment:
    """Two tokens, the second generated."""
    columns = {
        "ids": Column(dtype="u4", shape=(2,), data=struct.pack("<2I", 1, 2)),
        "mask": Column(dtype="u1", shape=(2,), data=bytes((0, 1))),
        "logprobs": Column(dtype="f4", shape=(2,), data=struct.pack("<2f", 0.0, -0.5)),
    }
    versions = [VersionRun(version=Version(lineage=1, step=0), start=1, end=2)]
    return Segment(id="s", n_prompt=1, first_turn=0, last_turn=0, columns=columns | changed, versions=versions)


def unusable() -> dict[str, Segment]:
    whole = segment()
    short = Column(dtype="f4", shape=(1,), data=bytes(4))
    shared = {"id": "s", "n_prompt": 1, "first_turn": 0, "last_turn": 0}
    return {
        "no ids": Segment(
            columns={name: whole.columns[name] for name in ("mask", "logprobs")}, versions=whole.versions, **shared
        ),  # type: ignore[arg-type]
        "nan": segment(logprobs=Column(dtype="f4", shape=(2,), data=struct.pack("<2f", 0.0, math.nan))),
        "another length": segment(logprobs=short),
        "another type": segment(ids=Column(dtype="i8", shape=(2,), data=bytes(16))),
        "no versions": Segment(columns=whole.columns, versions=[], **shared),  # type: ignore[arg-type]
    }


async def test_a_trajectory_that_nobody_can_learn_from_is_trained_without_its_tokens(stage: Stage) -> None:
    bus = await stage.connect("driver")
    feed = BatchFeed(await stage.connect("trainer"), ledger_rules(SETTINGS.run), None)
    bad = unusable()
    for name, each in {"good": segment(), **bad}.items():
        ref = await bus.put_blob("e1", encode(Trajectory(episode="e1", segments=[each])))
        found = await feed._fetch(graded(ref))
        assert len(found) == (name == "good"), name
    assert feed.n_blobs_missing == len(bad)


def graded(ref: BlobRef) -> EpisodeGraded:
    where = {"episode": "e1", "group": "g", "member": 0, "members": 1, "slot": 0, "purpose": "train", "task": "t"}
    numbers = dict.fromkeys(("n_turns", "n_tokens_generated", "n_searches", "n_reads"), 1)
    told = {"reward": Reward(value=1.0), "trajectory": ref, "status": "answered", "answer": "a"}
    return EpisodeGraded(id="x", **where, **numbers, **told)  # type: ignore[arg-type]


async def test_an_event_that_is_too_large_is_refused_at_once_and_costs_no_connection(stage: Stage) -> None:
    bus = await stage.connect("driver")
    broker_takes = topology.MAX_PAYLOAD_BYTES + (64 << 10)
    for size in (topology.MAX_PAYLOAD_BYTES, broker_takes - 300, 10 << 20):
        with pytest.raises(Exception, match=r"more than one message holds|exceeds maximum"):
            async with asyncio.timeout(5.0):
                await bus.append(call("e1", 0, size), "e1", expected=0, scope=Scope.KEY)
    assert await bus.append(call("e1", 1), "e1", expected=0) == 1
    assert bus.gauges()["n_disconnects"] == 0
