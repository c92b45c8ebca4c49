"""Every ended episode of a run, once, in the order of the outcomes, with all that is known of it; at most a few in memory.

What the recorder has archived is read line by line; outcomes after it come from the streams. Fates follow from the whole of
POLICY, which is read first.
"""

from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from actors.runtime.archive import EpisodeNames
from actors.runtime.episode_lines import EpisodeLineError, damaged, decode_episode
from actors.runtime.run_source import RunSource
from asearch.agents.recorded import start_of
from asearch.traces.ended import EndedEpisode
from asearch.traces.record import EpisodeRecord
from asearch.traces.rows import RowTable
from asearch.traces.turns import FoldedEpisode, folded, turns_of
from schemas.archive import ArchivedEpisode
from schemas.codec import MalformedError, decode_step_tokens
from schemas.events import AnyOutcome, EpisodeRequested, StepTrained, TrainerClaimed
from schemas.records import BlobRef, TrainedEpisode

MAX_STEPS_HELD = 4
"""Updates whose tokens are held at once: episodes come roughly in the order of the updates that used them."""


class EndedEpisodes:
    """Reads a run once. `problems` says what could not be read."""

    def __init__(self, source: RunSource) -> None:
        self.source = source
        self.problems: list[str] = []
        self.steps: list[tuple[StepTrained, bool]] = []
        """Every update in order, with whether it was abandoned."""
        self._table = RowTable()
        self._tokens: dict[int, BlobRef] = {}
        self._held: OrderedDict[int, dict[str, TrainedEpisode]] = OrderedDict()
        self._names = EpisodeNames()
        self._last = 0

    async def read(self) -> AsyncGenerator[EndedEpisode]:
        """Every ended episode. Raises BusError."""
        if self.source.bus is not None:
            await self._read_policy()
        for entry, damage in self._archived():
            yield await self._ended(entry.sequence, await self.source.record_of_entry(entry, damage))
        if self.source.bus is None:
            return
        async with aclosing(self.source.events("outcomes", start_sequence=self._last + 1)) as reader:
            async for stored in reader:
                if isinstance(stored.event, AnyOutcome) and stored.event.episode not in self._names:
                    self._names.add(stored.event.episode)
                    yield await self._ended(stored.sequence, await self.source.record(stored.event.episode))

    async def n_requested(self) -> Counter[str] | None:
        """Episodes that PLAN asks for, by purpose; None where PLAN is gone."""
        if self.source.bus is None:
            return None
        found: Counter[str] = Counter()
        async with aclosing(self.source.bus.read("plan", events=(EpisodeRequested,), follow=False)) as reader:
            async for stored in reader:
                if isinstance(stored.event, EpisodeRequested) and stored.event.attempt == 0:
                    found[stored.event.purpose] += 1
        return found

    async def _read_policy(self) -> None:
        async with aclosing(self.source.events("policy")) as reader:
            async for stored in reader:
                event = stored.event
                self._table.fold("policy", stored.sequence, event)
                if isinstance(event, StepTrained):
                    self.steps.append((event, False))
                elif isinstance(event, TrainerClaimed):
                    self.steps = [(step, gone or step.step >= event.step) for step, gone in self.steps]
        self._tokens = {step.step: step.tokens for step, gone in self.steps if step.tokens is not None and not gone}

    def _archived(self) -> Iterator[tuple[ArchivedEpisode, list[str]]]:
        """Line by line, with the facts that have changed since; a last line without its end is left out."""
        path = self.source.archive.path
        if not path.is_file():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry, damage = decode_episode(line), damaged(line)
                except EpisodeLineError as error:
                    self.problems.append(f"{path}, line {number}: {error}")
                    continue
                self._last = max(self._last, entry.sequence)
                if entry.episode in self._names:
                    continue
                self._names.add(entry.episode)
                self.problems.extend(f"{entry.episode}: {each} is not as it was written" for each in damage)
                yield entry, damage

    async def _ended(self, sequence: int, record: EpisodeRecord) -> EndedEpisode:
        outcome = record.outcome
        assert outcome is not None  # noqa: S101
        requests = [take.request for take in record.takes] or ([record.request] if record.request else [])
        if not requests and self.source.bus is not None:
            found = await self.source.bus.get_last(EpisodeRequested, record.episode)
            requests = [found.event] if found is not None and isinstance(found.event, EpisodeRequested) else []
        row = self._table.ended_row(outcome, requests)
        trained = await self._trained(row.step, record.episode) if row.fate == "counted" and row.step is not None else None
        return EndedEpisode(record, row, sequence, fold_record(self.source, record), trained)

    async def _trained(self, step: int, episode: str) -> TrainedEpisode | None:
        if step not in self._tokens:
            return None
        if step not in self._held:
            self._held[step] = await self._read_step(step)
            while len(self._held) > MAX_STEPS_HELD:
                self._held.popitem(last=False)
        return self._held[step].get(episode)

    async def _read_step(self, step: int) -> dict[str, TrainedEpisode]:
        data = await self.source.blob(self._tokens[step])
        if data is None:
            self.problems.append(f"the recorded tokens of step {step} are gone")
            return {}
        try:
            return {each.episode: each for each in decode_step_tokens(data).episodes}
        except MalformedError as error:
            self.problems.append(f"the recorded tokens of step {step} cannot be read: {error}")
            return {}


def fold_record(source: RunSource, record: EpisodeRecord) -> FoldedEpisode:
    """The turns of an episode and its last state, by the run's own agent where its model folder is there."""
    loaded = source.agent()
    if loaded is None or record.request is None:
        return FoldedEpisode(turns_of(record), None, source.missing_model or "nobody took it")
    agent, tokenizer = loaded
    return folded(record, agent, start_of(record.request, source.content.settings.agent), tokenizer.decode)
