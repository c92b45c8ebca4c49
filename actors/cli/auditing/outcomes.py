"""The outcomes of a run: what OUTCOMES holds, and before it what the recorder archived before it purged.

Together they have every sequence once, and say the same where both have one.
"""

from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from actors.cli.auditing.buried import check_undecodable
from actors.cli.auditing.problems import Problems
from actors.runtime.bus import Bus, Stored
from schemas.archive import OUTCOMES, ArchivedOutcome, archived_outcome, decode_outcome
from schemas.events import Outcome

Sequenced = list[tuple[int, Outcome]]


@dataclass
class OutcomeSources:
    """How many messages came from where. `n_late` are second outcomes of episodes whose first was purged before: void."""

    n_stream: int = 0
    n_archive: int = 0
    n_both: int = 0
    n_late: int = 0


async def outcomes_of(bus: Bus, run_dir: Path, problems: Problems) -> tuple[Sequenced, OutcomeSources]:
    """All outcomes in order. Raises BusError."""
    last = (await bus.stream_info("outcomes")).last_sequence
    stream: dict[int, Stored] = {}
    async with aclosing(bus.read("outcomes", follow=False)) as reader:
        async for stored in reader:
            stream[stored.sequence] = stored
            if stored.event is not None and not isinstance(stored.event, Outcome):
                problems.add("foreign_fact", f"message {stored.sequence} of OUTCOMES is a {type(stored.event).__name__}")
    await check_undecodable(bus, "outcomes", [each for each in stream.values() if each.event is None], problems)
    last = max(last, *stream) if stream else last
    lines = _lines(run_dir / "archive" / OUTCOMES, problems)
    for sequence in sorted(stream.keys() & lines.keys()):
        if archived_outcome(sequence, stream[sequence].event, stream[sequence].data) != lines[sequence]:
            problems.add("archive_differs", f"outcome {sequence} is archived otherwise than OUTCOMES holds it")
    kept = {number: line for number, line in lines.items() if number <= last and number not in stream}
    missing = [number for number in range(1, last + 1) if number not in stream and number not in kept]
    if missing:
        some = ", ".join(map(str, missing[:5]))
        problems.add("outcomes_missing", f"{len(missing)} messages are neither in OUTCOMES nor in the archive: {some}")
    end = (await bus.stream_info("outcomes")).last_sequence
    if max(lines, default=0) > end:
        problems.add("archive_ahead", f"outcome {max(lines)} is archived, but OUTCOMES ends at {end}")
    found: Sequenced = [(number, each.event) for number, each in stream.items() if isinstance(each.event, Outcome)]
    found += [(number, line.outcome) for number, line in kept.items() if line.outcome is not None]
    outcomes, n_late = _without_late(sorted(found, key=lambda each: each[0]), kept)
    return outcomes, OutcomeSources(len(stream), len(kept), len(stream.keys() & lines.keys()), n_late)


def _lines(path: Path, problems: Problems) -> dict[int, ArchivedOutcome]:
    lines: dict[int, ArchivedOutcome] = {}
    try:
        written = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return lines
    except OSError as error:
        problems.add("archive_unreadable", f"{path}: {error}")
        return lines
    for number, text in enumerate(written, 1):
        try:
            line = decode_outcome(text)
        except msgspec.DecodeError as error:
            # The recorder of a live run, or one that was killed, may be in the middle of its last line.
            if text.endswith(b"\n"):
                problems.add("archive_unreadable", f"line {number} of {path}: {error}")
            continue
        if line.sequence in lines:
            problems.add("archive_twice", f"line {number} of {path} has outcome {line.sequence} a second time")
        lines[line.sequence] = line
    return lines


def _without_late(found: Sequenced, purged: dict[int, ArchivedOutcome]) -> tuple[Sequenced, int]:
    """Leave out second outcomes that the broker could not refuse, because the first was purged: they count nowhere."""
    first: dict[str, int] = {}
    outcomes: Sequenced = []
    for sequence, outcome in found:
        if first.setdefault(outcome.episode, sequence) == sequence or first[outcome.episode] not in purged:
            outcomes.append((sequence, outcome))
    return outcomes, len(found) - len(outcomes)
