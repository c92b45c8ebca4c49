"""The tokens of updates go from BLOBS to the archive, once each, whenever the recorder lives; nothing goes before it is there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from actors import recorder as module
from actors.recorder import Recorder
from actors.runtime import archive
from actors.runtime.actor import Context
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from schemas.codec import decode_step_tokens, encode
from schemas.events import StepTrained, TrainerClaimed
from schemas.records import BlobRef, StepTokens, TrainedEpisode
from schemas.topology import step_tokens_key
from tests.runtime.facts import until
from tests.sim.scenario import SETTINGS


class Run:
    """A run in memory: a trainer that stores and says, recorders that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = MemoryBroker(SystemPlatform(0))
        self.trainer = self.bus("trainer")
        self.living: list[tuple[Recorder, asyncio.Task[None]]] = []

    def bus(self, actor: str) -> MemoryBus:
        return MemoryBus(self.broker, "r", actor, SystemPlatform(0))

    async def store(self, step: int, lineage: int = 1) -> BlobRef:
        """What a trainer does first."""
        tokens = StepTokens(model="policy", lineage=lineage, step=step, episodes=[TrainedEpisode(episode="e", advantage=1.0)])
        return await self.trainer.put_blob(step_tokens_key("policy", lineage, step), encode(tokens))

    async def say(self, step: int, ref: BlobRef | None, lineage: int = 1) -> None:
        """What it does then."""
        fact = StepTrained(
            id=f"step-{lineage}-{step}",
            model="policy",
            lineage=lineage,
            step=step,
            verdicts=[],
            staleness={},
            n_tokens_trained=0,
            n_tokens_masked_stale=0,
            n_tokens_discarded=0,
            empty=False,
            metrics={},
            tokens=ref,
        )
        await self.trainer.append(fact, "policy")

    async def claim(self, lineage: int, step: int = 0) -> None:
        fact = TrainerClaimed(id=f"c{lineage}", model="policy", lineage=lineage, step=step, checkpoint=None, trainer="t")
        await self.trainer.append(fact, "policy")

    async def record(self) -> Recorder:
        bus = self.bus("recorder")
        held = Recorder(Context("r", self.folder, SETTINGS, bus, bus.platform, "recorder-0"))
        self.living.append((held, asyncio.create_task(held.run(2.0))))
        await until(lambda: held.state == "ready")
        return held

    async def end(self) -> None:
        """Let the recorders end as they do when they are asked to."""
        for held, _ in self.living:
            held.stop()
        for _, task in self.living:
            await task
        self.living.clear()

    async def kill(self) -> None:
        for _, task in self.living:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.living), return_exceptions=True)
        self.living.clear()

    async def left(self) -> list[str]:
        """Keys that BLOBS holds."""
        async with aclosing(self.trainer.read("blobs", follow=False)) as reader:
            return [stored.key[0] async for stored in reader]

    async def empties(self) -> None:
        async with asyncio.timeout(5.0):
            while await self.left():  # noqa: ASYNC110 -- a purge has no event
                await asyncio.sleep(0.02)

    def archived(self) -> list[tuple[int, int]]:
        """Lineage and step of what is in the archive."""
        files = [path for path in (self.folder / "archive" / "blobs").iterdir() if not path.name.startswith(".")]
        found = [decode_step_tokens(path.read_bytes()) for path in files]
        return sorted((each.lineage, each.step) for each in found)


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.05)
    held = Run(tmp_path)
    await held.trainer.ensure_topology()
    yield held
    await held.kill()


async def test_what_the_journal_names_is_archived_and_then_purged(run: Run) -> None:
    await run.claim(1)
    await run.record()
    for step in range(3):
        await run.say(step, await run.store(step))
    await run.empties()
    assert run.archived() == [(1, 0), (1, 1), (1, 2)]
    await run.end()


async def test_a_record_that_is_not_named_yet_stays(run: Run) -> None:
    await run.claim(1)
    held = await run.record()
    await run.say(0, await run.store(0))
    ref = await run.store(1)
    key = step_tokens_key("policy", 1, 1)
    async with asyncio.timeout(5.0):
        while await run.left() != [key]:  # noqa: ASYNC110 -- a purge has no event
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    assert await run.left() == [key], "its step may still be said"
    await run.say(1, ref)
    await run.empties()
    assert run.archived() == [(1, 0), (1, 1)]
    assert held.gauges()["n_blobs_missing"] == 0


async def test_what_a_killed_trainer_never_named_goes_with_the_next_claim(run: Run) -> None:
    await run.claim(1)
    await run.record()
    await run.store(0)
    await run.claim(2)
    await run.empties()
    # One that was stopped, and stores what nobody will ever hear of.
    await run.store(1)
    await run.empties()
    await run.say(0, await run.store(0, lineage=2), lineage=2)
    await run.empties()
    assert run.archived() == [(2, 0)]


async def test_a_recorder_that_ends_has_archived_what_was_said_until_then(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_EVERY_S", 1000.0)
    await run.record()
    for step in range(3):
        await run.say(step, await run.store(step))
    await run.end()
    assert run.archived() == [(1, 0), (1, 1), (1, 2)]
    assert len(await run.left()) == 3
    monkeypatch.setattr(module, "PURGE_EVERY_S", 0.05)
    held = await run.record()
    await run.empties()
    assert held.gauges()["n_blobs_missing"] == 0
    assert run.archived() == [(1, 0), (1, 1), (1, 2)]


async def test_what_is_gone_is_counted_and_stops_nobody(run: Run) -> None:
    gone = BlobRef(episode=step_tokens_key("policy", 1, 0), hash="0" * 32, size_bytes=1, n_chunks=1)
    strange = BlobRef(episode="e1", hash="1" * 32, size_bytes=1, n_chunks=1)
    await run.say(0, gone)
    await run.trainer.put_blob("e1", b"x")
    await run.say(1, strange)
    held = await run.record()
    await run.say(2, await run.store(2))
    await until(lambda: held.gauges()["n_blobs_missing"] == 1)
    await until(lambda: run.archived() == [(1, 2)])
    await until(lambda: held.gauges()["n_purged"] == 1)
    assert await run.left() == ["e1"], "a step names its own tokens alone"


async def test_nothing_is_purged_before_its_file_is_in_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that dies before the rename has purged nothing; the next one archives it."""

    def killed(path: Path, data: bytes) -> None:
        path.with_name(f".{path.name}.part").write_bytes(data[:5])
        raise RuntimeError("killed")

    monkeypatch.setattr("actors.runtime.step_archive.write_once", killed)
    await run.record()
    await run.say(0, await run.store(0))
    with pytest.raises(ExceptionGroup):
        await run.living[0][1]
    run.living.clear()
    assert await run.left() == [step_tokens_key("policy", 1, 0)]
    assert run.archived() == []
    monkeypatch.setattr("actors.runtime.step_archive.write_once", archive.write_once)
    await run.record()
    await run.empties()
    assert run.archived() == [(1, 0)]
