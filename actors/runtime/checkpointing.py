"""The trainer's checkpoints: copied between two steps, written while the next ones train, committed through the journal.

The order is what makes them safe: files, manifest, name, each fsynced; then the fact, which only the rightful trainer can
append; only then are older ones deleted. One is under way at a time: when the next is due earlier, it is taken between the
first two steps after that. A disk that is full or fails costs a checkpoint, not the training: the ones before stay, and it is
tried again, MAX_FAILURES times in a row at most.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from actors.runtime.platform import Platform
from actors.runtime.policy_journal import PolicyJournal
from actors.runtime.ranks import Rank
from asearch.errors import CheckpointError, StorageError
from asearch.learning.ledger import LedgerSnapshot
from asearch.training import checkpoints
from schemas.events import CheckpointCommitted
from schemas.local import AwaitCheckpoint, CheckpointCopied, CheckpointProgress, SaveCheckpoint
from schemas.records import Version

KEEP = 2
POLL_S = 0.25
HURRY_S = 1.0
"""How long the rank is held by one question for its files where training stands still for them."""
TIMEOUT_S = 3600.0
MAX_FAILURES = 6
RETRY_S = 2.0
"""Wait after the first failure; it doubles with every further one."""

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Checkpointer:
    """Takes checkpoints of one rank under one claim."""

    def __init__(
        self,
        platform: Platform,
        journal: PolicyJournal,
        rank: Rank,
        spawn: Spawn,
        root: Path,
        model: str,
        recipe_hash: str,
        every_steps: int,
    ) -> None:
        """`spawn` runs what goes on beside training; its failure has to end the trainer."""
        self._platform = platform
        self._journal = journal
        self._rank = rank
        self._spawn = spawn
        self._root = root
        self._model = model
        self._recipe_hash = recipe_hash
        self._every_steps = every_steps
        self._log = structlog.get_logger().bind(folder=str(root))
        self._under_way: asyncio.Task[None] | None = None
        self._committed_step: int | None = None
        self._due_at = 0
        self._n_waiting = 0
        self._n_in_a_row = 0
        self._retry_at_s = 0.0
        self.n_failed = 0
        """Attempts that a disk has refused."""
        self.blocked_s = 0.0
        """Seconds for which training has stood still for checkpoints."""

    async def resumed(self, step: int, stands: bool) -> None:
        """Training goes on from `step`, of which a checkpoint stands already or not; what dead lives have left is deleted."""
        self._committed_step = step if stands else None
        self._due_at = self._next_due(step)
        await asyncio.to_thread(self._prune)

    def is_due(self, step: int) -> bool:
        """Whether to begin one before step `step` is trained."""
        is_idle = self._under_way is None or self._under_way.done()
        return is_idle and step >= self._due_at and self._platform.monotonic() >= self._retry_at_s

    async def begin(self, step: int, snapshot: LedgerSnapshot) -> None:
        """Copy the state as of `step`; the copy is written and committed beside training.

        Raises CheckpointError when a disk has refused too often.
        """
        begun_s = self._platform.monotonic()
        lineage = self._journal.lineage
        self._due_at = self._next_due(step)
        try:
            aside = await asyncio.to_thread(checkpoints.begin, self._root, lineage, step)
            await self._platform.fault("trainer.checkpoint_asked")
            await self._rank.ask(SaveCheckpoint(path=str(aside)), CheckpointCopied, TIMEOUT_S)
        except (OSError, StorageError) as error:
            await self._refused(Version(lineage=lineage, step=step), error)
            return
        finally:
            self.blocked_s += self._platform.monotonic() - begun_s
        await self._platform.fault("trainer.checkpoint_copied")
        self._under_way = self._spawn(self._complete(aside, step, snapshot), f"checkpoint of step {step}")

    async def commit(self, step: int, snapshot: LedgerSnapshot) -> None:
        """Return when a checkpoint of `step` is committed; training stands still meanwhile.

        Raises CheckpointError when a disk has refused too often, SecondTrainerError.
        """
        begun_s = self._platform.monotonic()
        self._n_waiting += 1
        try:
            await self._settle()
            while self._committed_step != step:
                await self._platform.sleep(max(0.0, self._retry_at_s - self._platform.monotonic()))
                await self.begin(step, snapshot)
                await self._settle()
        finally:
            self._n_waiting -= 1
            self.blocked_s += self._platform.monotonic() - begun_s

    async def _settle(self) -> None:
        """Wait for the one under way. Raises what it raised."""
        if self._under_way is not None:
            await asyncio.wait([self._under_way])
            await self._under_way

    async def _complete(self, aside: Path, step: int, snapshot: LedgerSnapshot) -> None:
        version = Version(lineage=self._journal.lineage, step=step)
        try:
            final = await self._finished(aside, version, snapshot)
        except (OSError, StorageError) as error:
            await self._refused(version, error)
            return
        await self._journal.append(
            CheckpointCommitted(
                id=f"checkpoint-{self._model}-{version.lineage}-{step}",
                at_ns=self._platform.now_ns(),
                model=self._model,
                lineage=version.lineage,
                step=step,
                path=str(final),
                watermark=snapshot.watermark,
                # The whole ledger lies in the manifest; repeated here it would make POLICY grow with the square of the run.
                counted=[each for each in snapshot.counted if each.last > snapshot.watermark],
            )
        )
        self._committed_step = step
        self._n_in_a_row, self._retry_at_s = 0, 0.0
        await self._platform.fault("trainer.checkpoint_committed")
        await asyncio.to_thread(self._prune)
        await self._platform.fault("trainer.checkpoints_pruned")

    async def _finished(self, aside: Path, version: Version, snapshot: LedgerSnapshot) -> Path:
        """Wait for the rank's files, and put the folder in place."""
        files = await self._files(version)
        manifest = checkpoints.Manifest(
            lineage=version.lineage,
            step=version.step,
            recipe_hash=self._recipe_hash,
            ledger=snapshot,
            files={name: checkpoints.FileEntry(size, digest) for name, (size, digest) in files.items()},
        )
        await self._platform.fault("trainer.checkpoint_written")
        await asyncio.to_thread(checkpoints.write_manifest, aside, manifest)
        await self._platform.fault("trainer.checkpoint_whole")
        final = await asyncio.to_thread(checkpoints.put_in_place, aside)
        await self._platform.fault("trainer.checkpoint_in_place")
        return final

    async def _files(self, version: Version) -> dict[str, tuple[int, str]]:
        deadline_s = self._platform.monotonic() + TIMEOUT_S
        while self._platform.monotonic() < deadline_s:
            command = AwaitCheckpoint(timeout_s=HURRY_S if self._n_waiting else 0.0)
            progress = await self._rank.ask(command, CheckpointProgress, TIMEOUT_S)
            if progress.files is not None:
                return progress.files
            await self._platform.sleep(POLL_S)
        raise CheckpointError(
            f"the checkpoint {version} was not on disk after {TIMEOUT_S:g} s: is {self._root} on a disk that hangs?"
        )

    async def _refused(self, version: Version, error: Exception) -> None:
        """Undo and plan another attempt. Raises CheckpointError when there were too many."""
        await asyncio.to_thread(self._remove, version)
        self.n_failed += 1
        self._n_in_a_row += 1
        wait_s = RETRY_S * 2 ** (self._n_in_a_row - 1)
        self._retry_at_s = self._platform.monotonic() + wait_s
        self._due_at = version.step
        stands = self._journal.checkpoints[-1] if self._journal.checkpoints else "none"
        text = (
            f"the checkpoint of step {version.step} could not be written: {error}. Free space on the disk of {self._root}, "
            f"{_free(self._root)}; the checkpoint before it ({stands}) is as it was"
        )
        if self._n_in_a_row >= MAX_FAILURES:
            raise CheckpointError(f"{text}. It was tried {MAX_FAILURES} times") from error
        self._log.error(text, attempt=self._n_in_a_row, next_in_s=wait_s)

    def _remove(self, version: Version) -> None:
        name = checkpoints.name_of(version.lineage, version.step)
        for folder in (name, checkpoints.aside_of(name)):
            shutil.rmtree(self._root / folder, ignore_errors=True)

    def _prune(self) -> None:
        checkpoints.prune(self._root, self._journal.checkpoints[-KEEP:], self._journal.lineage)

    def _next_due(self, step: int) -> int:
        return (step // self._every_steps + 1) * self._every_steps


def _free(path: Path) -> str:
    try:
        return f"where {shutil.disk_usage(path).free / 1e6:,.0f} MB are free"
    except OSError as error:
        return f"which cannot be read: {error}"


def standing(root: Path, journal: PolicyJournal) -> tuple[Path, checkpoints.Manifest] | None:
    """The checkpoint to go on from: the newest that stands in the journal, or a newer whole one of the last claim.

    The last claim's trainer may have died between putting a checkpoint in place and saying so; nobody claimed after it, so
    what it wrote is part of the history. Raises CheckpointError if what the journal names is corrupt or gone.
    """
    whole = checkpoints.whole(root)
    newest = journal.checkpoints[-1] if journal.checkpoints else None
    unsaid = [each for each in whole if each.lineage == journal.lineage and (newest is None or each.step > newest.step)]
    if unsaid:
        return whole[max(unsaid)], checkpoints.read(whole[max(unsaid)])
    there = [each for each in journal.checkpoints if each in whole]
    if there:
        return whole[there[-1]], checkpoints.read(whole[there[-1]])
    return None
