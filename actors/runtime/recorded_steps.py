"""The batches of a run, made again from what is recorded of it, beside what its trainer wrote of each.

OUTCOMES are folded by the ledger as the trainer folds them. A trajectory that was purged is folded again from the facts of its
episode and must have the hash under which the outcome names it, so a segment is the one that was trained, bit by bit.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from actors.runtime.batches import train_groups
from actors.runtime.bus import Stored
from actors.runtime.ended_episodes import fold_record
from actors.runtime.event_history import archived_messages, with_archive
from actors.runtime.rank_commands import permute_seed
from actors.runtime.run_source import RunSource
from asearch.agents.segments import segments
from asearch.errors import InputError
from asearch.learning.ledger import Ledger, StepClosed
from asearch.learning.rules import ledger_rules
from asearch.traces.replay import ref_of
from asearch.training.columns import check_segment
from schemas.codec import decode_trajectory, encode
from schemas.events import EpisodeGraded, GroupVerdict, Outcome, StepTrained, TrainerClaimed
from schemas.local import TrainGroup
from schemas.records import BlobRef, Segment, Trajectory, Version

MODEL = "policy"


@dataclass(frozen=True)
class RecordedStep:
    """A step as the last lineage that trained it recorded it, with the claims until then."""

    trained: StepTrained
    claims: tuple[Version, ...]


class RecordedSteps:
    """The steps of a run that stand, in order: what a claim of a younger lineage went back before is left out."""

    def __init__(self, source: RunSource) -> None:
        self._source = source
        self._steps: list[RecordedStep] = []

    def __len__(self) -> int:
        return len(self._steps)

    async def read(self) -> None:
        """Read the journal. Raises InputError where it is gone."""
        if self._source.bus is None:
            raise InputError(
                f"what run '{self._source.run}' trained is not known any more: its journal (POLICY) went with the broker's "
                "store, and the archive holds episodes alone"
            )
        claims: list[Version] = []
        async with aclosing(self._source.events("policy")) as journal:
            async for stored in journal:
                event = stored.event
                if isinstance(event, TrainerClaimed) and event.model == MODEL:
                    claims.append(Version(lineage=event.lineage, step=event.step))
                    del self._steps[event.step :]
                elif isinstance(event, StepTrained) and event.model == MODEL and event.step == len(self._steps):
                    self._steps.append(RecordedStep(event, tuple(claims)))

    async def batches(self, n_steps: int) -> AsyncGenerator[tuple[RecordedStep, list[TrainGroup]]]:
        """The first `n_steps` steps, at least one, with what each trained; an empty step trained no group.

        Raises InputError, which names what is missing, where what is recorded does not suffice.
        """
        settings = self._source.content.settings
        ledger = Ledger(ledger_rules(settings.run))
        async with aclosing(self._outcomes()) as outcomes:
            async for stored in outcomes:
                if not isinstance(stored.event, Outcome) or stored.event.purpose != "train":
                    continue
                for effect in ledger.fold(stored.sequence, stored.event):
                    if isinstance(effect, StepClosed):
                        self._check(effect)
                        trajectories = {each.episode: await self._segments(each) for group in effect.groups for each in group}
                        yield self._steps[effect.step], train_groups(effect, trajectories, permute_seed(settings, effect.step))
                        if effect.step + 1 == n_steps:
                            return
        raise InputError(
            f"the outcomes of run '{self._source.run}' close {ledger.step} steps, but its journal has {len(self)}: "
            "the broker's store or the archive is not as the run left it"
        )

    async def _outcomes(self) -> AsyncGenerator[Stored]:
        """OUTCOMES from its first message on, the purged ones from the archive. Raises InputError for one that is in neither."""
        source = self._source
        archived = archived_messages(source.run_dir / "archive", source.run, "outcomes")
        expected = 1
        async with aclosing(with_archive(archived, source.events("outcomes"))) as messages:
            async for stored in messages:
                if stored.sequence != expected:
                    raise InputError(
                        f"outcome {expected} of run '{source.run}' is neither in OUTCOMES nor in {source.run_dir / 'archive'}: "
                        "without it other groups would close"
                    )
                expected += 1
                yield stored

    def _check(self, closed: StepClosed) -> None:
        """Raises InputError if the trainer recorded other groups."""
        found = [GroupVerdict(group=each.group, episodes=len(each.sequences), reason=each.reason) for each in closed.verdicts]
        recorded = self._steps[closed.step].trained.verdicts
        if found != recorded:
            here, there = (", ".join(f"{each.group} {each.reason or 'counted'}" for each in them) for them in (found, recorded))
            raise InputError(
                f"step {closed.step} of run '{self._source.run}' closes over other groups than its trainer recorded: "
                f"{here}; recorded: {there}"
            )

    async def _segments(self, outcome: EpisodeGraded) -> list[Segment]:
        ref = outcome.trajectory
        if ref is None:
            return []
        data = await self._source.blob(ref)
        if data is None or ref_of(outcome.episode, data) != ref:
            data = await self._folded(outcome.episode, ref)
        found = decode_trajectory(data).segments
        for segment in found:
            check_segment(segment)
        return found

    async def _folded(self, episode: str, ref: BlobRef) -> bytes:
        record = await self._source.find(episode)
        if record is None or not record.facts:
            raise InputError(
                f"the trajectory of episode '{episode}' is gone: BLOBS no longer has it, and neither TRACE nor the archive "
                "has the episode's facts"
            )
        told = fold_record(self._source, record)
        if told.state is None:
            raise InputError(f"the trajectory of episode '{episode}' is purged and its facts cannot be folded: {told.trouble}")
        data = encode(Trajectory(episode=episode, segments=segments(told.state)))
        if ref_of(episode, data) != ref:
            raise InputError(
                f"the facts of episode '{episode}' do not come to the trajectory that was trained: "
                f"`asearch replay {episode} --run {self._source.run}` names what differs"
            )
        return data
