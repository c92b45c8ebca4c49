"""The checkpointer on a disk that is full, and which checkpoint a trainer goes on from. Real files, the bus in memory."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.checkpointing import MAX_FAILURES, RETRY_S, Checkpointer, standing
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from actors.runtime.policy_journal import PolicyJournal
from asearch.errors import CheckpointError, SecondTrainerError, StorageError
from asearch.learning.ledger import LedgerSnapshot
from asearch.training import checkpoints
from schemas.events import StepTrained, TrainerClaimed
from schemas.local import (
    AwaitCheckpoint,
    CheckpointProgress,
    Command,
    ExportWeights,
    LoadModel,
    ModelLoaded,
    Reply,
    SaveCheckpoint,
)
from schemas.records import Version
from tests.crash.light_rank import LightRank
from tests.crash.small_disk import small_disk

MODEL = "policy"


class PatientPlatform(SystemPlatform):
    """Its sleeps only move its clock; a thread's work is waited for meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return self.slept_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s += delay_s
        await asyncio.sleep(0)


class DiskRank(LightRank):
    """A light rank that says of a disk what the real one says, and that writes for as many questions as it is told to."""

    n_questions = 0

    async def _reply(self, command: Command) -> Reply:
        if isinstance(command, AwaitCheckpoint) and self.n_questions:
            self.n_questions -= 1
            return CheckpointProgress(files=None)
        try:
            return await super()._reply(command)
        except OSError as error:
            if isinstance(command, SaveCheckpoint | AwaitCheckpoint | ExportWeights):
                raise StorageError(f"cannot write: {error}") from error
            raise


def ledger(step: int) -> LedgerSnapshot:
    return LedgerSnapshot(step=step, watermark=step, counted=[], discarded={}, ungraded=[])


class Scene:
    """A trainer's journal and checkpointer under a claim."""

    def __init__(self, root: Path, every_steps: int = 2) -> None:
        self.root, self._every_steps = root, every_steps
        self.platform = PatientPlatform()
        self.broker = MemoryBroker(SystemPlatform(0))
        self.rank = DiskRank(0.0)
        self.tasks: list[asyncio.Task[None]] = []

    async def claim(self, step: int = 0, checkpoint: Path | None = None) -> tuple[PolicyJournal, Checkpointer]:
        bus = MemoryBus(self.broker, "r", "trainer", SystemPlatform(0))
        await bus.ensure_topology()
        journal = PolicyJournal(bus, MODEL, lambda text: None)
        await journal.read()
        lineage = journal.lineage + 1
        name = checkpoint.name if checkpoint else None
        await journal.append(
            TrainerClaimed(id=f"claim-{lineage}", model=MODEL, lineage=lineage, step=step, checkpoint=name, trainer=f"t{lineage}")
        )
        await self.rank.ask(LoadModel(model_dir="", settings=b"", seed=0), ModelLoaded, 1.0)
        checkpointer = Checkpointer(self.platform, journal, self.rank, self.spawn, self.root, MODEL, "h", self._every_steps)
        await checkpointer.resumed(step, stands=checkpoint is not None)
        return journal, checkpointer

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        self.tasks.append(asyncio.create_task(coroutine, name=name))
        return self.tasks[-1]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name != "filler")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "checkpoints")


async def test_a_checkpoint_is_written_beside_training_and_the_next_one_waits_for_it(scene: Scene) -> None:
    journal, checkpointer = await scene.claim()
    assert [checkpointer.is_due(step) for step in (1, 2)] == [False, True]
    scene.rank.n_questions = 3
    await checkpointer.begin(2, ledger(2))
    assert journal.checkpoints == []
    assert not checkpointer.is_due(4)
    await asyncio.gather(*scene.tasks)
    assert journal.checkpoints == [Version(lineage=1, step=2)]
    assert [checkpointer.is_due(step) for step in (3, 5)] == [False, True]
    await checkpointer.begin(5, ledger(5))
    await checkpointer.commit(7, ledger(7))
    await checkpointer.commit(7, ledger(7))
    assert journal.checkpoints == [Version(lineage=1, step=step) for step in (2, 5, 7)]
    assert scene.names() == [checkpoints.name_of(1, 5), checkpoints.name_of(1, 7)]


async def test_a_full_disk_costs_a_checkpoint_and_the_one_before_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        scene = Scene(disk.folder)
        journal, checkpointer = await scene.claim()
        await checkpointer.commit(2, ledger(2))
        whole = scene.names()
        disk.fill()
        await checkpointer.begin(4, ledger(4))
        await asyncio.gather(*scene.tasks)
        assert (scene.names(), checkpointer.n_failed) == (whole, 1)
        assert not checkpointer.is_due(5), "it was tried again at once"
        scene.platform.slept_s += RETRY_S
        assert checkpointer.is_due(5)
        disk.free()
        await checkpointer.begin(5, ledger(5))
        await asyncio.gather(*scene.tasks)
        assert scene.names() == [*whole, checkpoints.name_of(1, 5)]
        assert checkpoints.read(disk.folder / checkpoints.name_of(1, 5)).step == 5
        assert journal.checkpoints[-1] == Version(lineage=1, step=5)


async def test_a_disk_that_stays_full_ends_training_with_the_fix_in_the_message(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        scene = Scene(disk.folder)
        journal, checkpointer = await scene.claim()
        await checkpointer.commit(2, ledger(2))
        whole = scene.names()
        disk.fill()
        with pytest.raises(CheckpointError, match=rf"(?s)step 4 .*No space left.*Free space on the disk of {disk.folder}.*1\.2"):
            await checkpointer.commit(4, ledger(4))
        assert checkpointer.n_failed == MAX_FAILURES
        assert scene.names() == whole
        found = standing(disk.folder, journal)
        assert found is not None
        assert found[1].step == 2


async def test_a_fenced_trainer_commits_and_deletes_nothing(scene: Scene) -> None:
    _, stale = await scene.claim()
    await stale.commit(2, ledger(2))
    await scene.claim(2, scene.root / checkpoints.name_of(1, 2))
    before = scene.names()
    with pytest.raises(SecondTrainerError, match="t2 has claimed lineage 2"):
        await stale.commit(4, ledger(4))
    assert [name for name in scene.names() if name in before] == before
    journal, _ = await scene.claim(2, scene.root / checkpoints.name_of(1, 2))
    assert journal.checkpoints == [Version(lineage=1, step=2)]
    assert scene.names() == before, "what the fenced trainer has left is still there"


async def put(scene: Scene, lineage: int, step: int) -> Path:
    """A whole checkpoint that nobody has committed."""
    aside = checkpoints.begin(scene.root, lineage, step)
    manifest = checkpoints.Manifest(lineage=lineage, step=step, recipe_hash="h", ledger=ledger(step), files={})
    checkpoints.write_manifest(aside, manifest)
    return checkpoints.put_in_place(aside)


def found_step(scene: Scene, journal: PolicyJournal) -> Version | None:
    found = standing(scene.root, journal)
    return Version(lineage=found[1].lineage, step=found[1].step) if found else None


async def test_a_checkpoint_that_its_trainer_did_not_live_to_commit_stands_until_somebody_claims_past_it(scene: Scene) -> None:
    journal, checkpointer = await scene.claim()
    await checkpointer.commit(2, ledger(2))
    unsaid = await put(scene, 1, 4)
    assert found_step(scene, journal) == Version(lineage=1, step=4)
    adopting, _ = await scene.claim(4, unsaid)
    assert adopting.checkpoints == [Version(lineage=1, step=2), Version(lineage=1, step=4)]
    third, _ = await scene.claim(4, unsaid)
    assert found_step(scene, third) == Version(lineage=1, step=4)
    await put(scene, 1, 6)
    assert found_step(scene, third) == Version(lineage=1, step=4), "a fenced trainer's checkpoint was taken"


async def test_a_claim_that_went_back_makes_later_checkpoints_void_for_good(scene: Scene) -> None:
    _, checkpointer = await scene.claim()
    await checkpointer.commit(2, ledger(2))
    await checkpointer.commit(4, ledger(4))
    journal, _ = await scene.claim(2, scene.root / checkpoints.name_of(1, 2))
    await put(scene, 1, 4)
    assert found_step(scene, journal) == Version(lineage=1, step=2)


async def test_steps_that_are_trained_again_are_counted(scene: Scene) -> None:
    journal, _ = await scene.claim()

    async def train(journal: PolicyJournal, steps: range) -> None:
        for step in steps:
            await journal.append(
                StepTrained(
                    id=f"step-{journal.lineage}-{step}",
                    model=MODEL,
                    lineage=journal.lineage,
                    step=step,
                    verdicts=[],
                    staleness={},
                    n_tokens_trained=0,
                    n_tokens_masked_stale=0,
                    n_tokens_discarded=0,
                    empty=True,
                    metrics={},
                )
            )

    await train(journal, range(4))
    journal, _ = await scene.claim(2)
    await train(journal, range(2, 6))
    journal, _ = await scene.claim(5)
    await train(journal, range(5, 7))
    assert journal.n_repeated == 2 + 1
