"""What an audit looks at: the newest committed checkpoint and the three streams, read in the order in which they refer back.

POLICY and the checkpoint that it names are read first, then OUTCOMES and PLAN: so a verdict always finds its outcomes and an
outcome its request, although a live run goes on meanwhile.
"""

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import msgspec
import xxhash

from actors.cli.auditing.buried import check_undecodable
from actors.cli.auditing.outcomes import OutcomeSources, outcomes_of
from actors.cli.auditing.problems import Problems
from actors.runtime.bus import Bus, Stored
from schemas.events import CheckpointCommitted, Event, Outcome, RunEnded, RunStarted, TrainerClaimed
from schemas.records import Interval

MANIFEST = "manifest.json"
BLOCK_BYTES = 1 << 20
MAX_READS = 3


class Ledger(msgspec.Struct, frozen=True):
    """The ledger of a checkpoint: sequences of OUTCOMES."""

    step: int
    watermark: int
    counted: list[Interval]
    discarded: dict[str, list[Interval]]
    ungraded: list[Interval]


class _File(msgspec.Struct, frozen=True):
    size_bytes: int
    hash: str


class Checkpoint(msgspec.Struct, frozen=True):
    """The manifest of a checkpoint, as far as an audit reads it."""

    lineage: int
    step: int
    ledger: Ledger
    files: dict[str, _File]


class Rules(msgspec.Struct, frozen=True):
    """The part of the configuration that accounting depends on."""

    steps: int
    groups_per_step: int
    group_size: int
    eta: int
    rule: str
    max_refills: int
    min_graded: int | None = None
    equal_rewards: str | None = None
    """`discard` or `keep`; runs that do not say it discard."""


class _Config(msgspec.Struct, frozen=True):
    run: Rules


@dataclass
class Evidence:
    """Everything that was read. Facts are with their sequence, in order."""

    plan: list[tuple[int, Event]] = field(default_factory=list[tuple[int, Event]])
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list[tuple[int, Outcome]])
    policy: list[tuple[int, Event]] = field(default_factory=list[tuple[int, Event]])
    checkpoint: tuple[str, Checkpoint] | None = None
    rules: Rules | None = None
    n_refused: int = 0
    sources: OutcomeSources = field(default_factory=OutcomeSources)

    @property
    def ended(self) -> RunEnded | None:
        """The end of the run, if it is the last fact of the plan."""
        last = self.plan[-1][1] if self.plan else None
        return last if isinstance(last, RunEnded) else None


async def gather(bus: Bus, run_dir: Path, problems: Problems) -> Evidence:
    """Read all evidence. Raises BusError."""
    evidence = Evidence()
    await _read_policy(bus, run_dir / "checkpoints", evidence, problems)
    evidence.outcomes, evidence.sources = await outcomes_of(bus, run_dir, problems)
    evidence.plan = await _read(bus, "plan", problems)
    evidence.rules = _rules(evidence.plan, problems)
    evidence.n_refused = (await bus.stream_info("dead")).n_messages
    return evidence


async def _read(bus: Bus, stream: str, problems: Problems) -> list[tuple[int, Event]]:
    """All facts of a stream. A message that is none is a problem unless it lies in DEAD: then everybody has skipped it."""
    facts: list[tuple[int, Event]] = []
    undecodable: list[Stored] = []
    first = 0
    async with aclosing(bus.read(stream, follow=False)) as reader:
        async for stored in reader:
            first = first or stored.sequence
            if stored.event is None:
                undecodable.append(stored)
            else:
                facts.append((stored.sequence, stored.event))
    await check_undecodable(bus, stream, undecodable, problems)
    if first > 1:
        problems.add("purged", f"{stream.upper()} begins at {first}: what lay before cannot be audited")
    return facts


def _rules(plan: list[tuple[int, Event]], problems: Problems) -> Rules | None:
    started = [event for _, event in plan if isinstance(event, RunStarted)]
    problems.unless(len(started) == 1, "run_started", f"{len(started)} facts say that the run started")
    if not started:
        return None
    try:
        return msgspec.json.decode(started[0].config, type=_Config).run
    except msgspec.DecodeError as error:
        problems.add("run_started", f"the run's configuration cannot be read: {error}")
        return None


def standing_checkpoints(policy: Iterable[tuple[int, Event]]) -> list[str]:
    """Names of the checkpoints that were committed, or gone on from, and that no later claim went back before; oldest first."""
    standing: dict[str, int] = {}
    for _, event in policy:
        if isinstance(event, TrainerClaimed):
            standing = {name: step for name, step in standing.items() if step <= event.step}
            if event.checkpoint is not None:
                standing.setdefault(event.checkpoint, event.step)
        elif isinstance(event, CheckpointCommitted):
            standing[PurePath(event.path).name] = event.step
    return list(standing)


async def _read_policy(bus: Bus, root: Path, evidence: Evidence, problems: Problems) -> None:
    """POLICY, and the newest checkpoint of it; both again if a live trainer has deleted that one meanwhile."""
    for attempt in range(MAX_READS):
        last = attempt == MAX_READS - 1
        found = Problems()
        evidence.policy = await _read(bus, "policy", found)
        evidence.checkpoint = newest_checkpoint(root, standing_checkpoints(evidence.policy), found)
        if last or "checkpoint_missing" not in found.counts:
            problems.take(found)
            return


def newest_checkpoint(root: Path, standing: list[str], problems: Problems) -> tuple[str, Checkpoint] | None:
    """Name and manifest of the checkpoint that the journal names last, its files verified. Other folders do not count."""
    if not standing:
        return None
    name = standing[-1]
    try:
        newest = msgspec.json.decode((root / name / MANIFEST).read_bytes(), type=Checkpoint)
    except FileNotFoundError:
        problems.add("checkpoint_missing", f"{root / name} is not there, though POLICY says that it was committed")
        return None
    except (OSError, msgspec.DecodeError) as error:
        problems.add("checkpoint_unreadable", f"{root / name / MANIFEST}: {error}")
        return None
    for file, entry in newest.files.items():
        problems.unless(_is_intact(root / name / file, entry), "checkpoint_corrupt", f"{name}/{file} is not as its manifest says")
    return name, newest


def _is_intact(path: Path, entry: _File) -> bool:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
            return file.tell() == entry.size_bytes and digest.hexdigest() == entry.hash
    except OSError:
        return False
