"""A story put on a bus and, where it has one, its checkpoint on disk, for the tests of the audit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from actors.cli.auditing.evidence import gather
from actors.cli.auditing.findings import audit, compare_result
from actors.cli.auditing.problems import Problems
from actors.runtime.bus import Bus
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from asearch.learning.ledger import Ledger, LedgerSnapshot, StepClosed, fold_all
from asearch.learning.rules import ledger_rules
from asearch.training import checkpoints
from schemas.events import (
    CheckpointCommitted,
    EpisodeRequested,
    Event,
    GroupAdmitted,
    Outcome,
    RunEnded,
    RunStarted,
)
from schemas.records import Interval
from tests.evaluation.stories import Story


def key_of(event: Event) -> str:
    """The key under which an actor would append a fact."""
    match event:
        case GroupAdmitted():
            return event.group
        case EpisodeRequested() | Outcome():
            return event.episode
        case RunStarted() | RunEnded():
            return event.run
        case _:
            return "policy"


async def put(bus: Bus, story: Story) -> None:
    """Append all facts of a story."""
    await bus.ensure_topology()
    for _, _, event in story.told:
        await bus.append(event, key_of(event))


def snapshot_of(story: Story, step: int) -> LedgerSnapshot:
    """The ledger after the close of a step, as the trainer comes to it."""
    outcomes = [(number, event) for number, event in enumerate(story.outcomes, 1) if isinstance(event, Outcome)]
    train = [(number, event) for number, event in outcomes if event.purpose == "train"]
    effects = fold_all(Ledger(ledger_rules(story.settings.run)), train)
    return next(each.snapshot for each in effects if isinstance(each, StepClosed) and each.step == step)


def commit(
    story: Story,
    run_dir: Path,
    step: int = 1,
    change: Callable[[LedgerSnapshot], LedgerSnapshot] = lambda snapshot: snapshot,
) -> Path:
    """Commit a checkpoint after a step and say so in POLICY; `change` plants an error in the ledger on disk."""
    told = snapshot_of(story, step)
    aside = checkpoints.begin(run_dir / "checkpoints", 1, step + 1)
    (aside / "weights.bin").write_bytes(b"weights")
    files = {"weights.bin": checkpoints.entry_of(aside / "weights.bin")}
    manifest = checkpoints.Manifest(lineage=1, step=step + 1, recipe_hash="h", ledger=change(told), files=files)
    checkpoints.write_manifest(aside, manifest)
    path = checkpoints.put_in_place(aside)
    story.tell(
        "policy",
        CheckpointCommitted(
            id=f"checkpoint-{step}",
            model="policy",
            lineage=1,
            step=step + 1,
            path=str(path),
            watermark=told.watermark,
            counted=told.counted,
        ),
    )
    return path


def without_last(intervals: list[Interval]) -> list[Interval]:
    """The intervals without their last member."""
    last = intervals[-1]
    rest = [] if last.first == last.last else [msgspec.structs.replace(last, last=last.last - 1)]
    return [*intervals[:-1], *rest]


async def audited(story: Story, run_dir: Path) -> tuple[dict[str, Any], Problems]:
    """The audit of a story on the bus in memory."""
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), story.run, "audit", platform)
    await put(bus, story)
    problems = Problems()
    evidence = await gather(bus, run_dir, problems)
    result = audit(evidence, problems)
    compare_result(result, run_dir / "result.json", evidence, problems)
    await bus.close()
    return result, problems
