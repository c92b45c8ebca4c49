"""Reading a run from outside, whatever state it is in: live, ended, or killed as a whole.

What the streams still hold comes from the broker, which is started on its store for the time of reading if no run keeps it
alive; what was purged comes from the archive. Where the broker's store is gone, the archive alone answers.
"""

import asyncio
import contextlib
import difflib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from actors.runtime.archive import read_outcomes
from actors.runtime.archive_index import ArchiveIndex
from actors.runtime.bus import Bus, Stored
from actors.runtime.episode_lines import EpisodeLineError, damaged, decode_episode
from actors.runtime.jetstream import connect
from actors.runtime.jsapi import STREAM_MISSING, ApiRefusal
from actors.runtime.platform import Platform
from actors.runtime.run_files import RunFile, check_name, read_run_file
from actors.runtime.workspace import Workspace
from asearch.agents.episode import Agent
from asearch.agents.recorded import start_of
from asearch.agents.registry import make_agent
from asearch.errors import AsearchError, BlobMissingError, InputError
from asearch.models.tokenizer import Tokenizer
from asearch.traces.record import EpisodeRecord, payloads_of, record_of
from asearch.traces.rows import RowTable
from asearch.traces.story import StoryTeller
from schemas.archive import BLOBS, OUTCOMES, ArchivedEpisode
from schemas.events import AnyOutcome, EpisodeRequested, EpisodeTaken, Event
from schemas.records import BlobRef
from schemas.topology import is_key

FOLDED = ("plan", "outcomes", "policy")


class RunSource:
    """Everything that is recorded of one run. `bus` None: only the archive is there."""

    def __init__(self, content: RunFile, run_dir: Path, bus: Bus | None) -> None:
        self.content = content
        self.run_dir = run_dir
        self.bus = bus
        self.archive = ArchiveIndex(run_dir / "archive")
        self.url = content.broker_url
        """Where the broker is."""
        self.problems: list[str] = []
        """What could not be read and was left out."""
        self.missing_model = ""
        """Why texts of prompts cannot be told, where the run's model folder is of no use."""
        self._loaded: tuple[Agent, Tokenizer] | None = None

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.content.run

    # --- rows ---

    async def rows(self, *, with_stages: bool = False) -> RowTable:
        """One row an episode as of now; with stages, what TRACE still holds says how far open ones are."""
        table = RowTable()
        if self.bus is None:
            await asyncio.to_thread(self._rows_of_archive, table)
            return table
        for stream in (*FOLDED, "trace") if with_stages else FOLDED:
            async with aclosing(self.bus.read(stream, follow=False)) as reader:
                async for stored in reader:
                    if stream == "outcomes" and table.folded["outcomes"] < stored.sequence - 1:
                        self._fill_outcomes(table, stored.sequence)
                    table.fold(stream, stored.sequence, stored.event)
        self._fill_outcomes(table, (await self.bus.stream_info("outcomes")).first_sequence)
        return table

    def _fill_outcomes(self, table: RowTable, before: int) -> None:
        """Fold the outcomes before a sequence that were purged."""
        for line in read_outcomes(self.run_dir / "archive" / OUTCOMES):
            if line.sequence < before:
                table.fold("outcomes", line.sequence, line.outcome)

    def _rows_of_archive(self, table: RowTable) -> None:
        """Without the broker's store the requests of archived episodes are known, and no verdict."""
        self.archive.refresh()
        if self.archive.n_unnamed:
            self.problems.append(f"{self.archive.n_unnamed} lines of {self.archive.path} are left out: they name no episode")
        for number, episode in enumerate(self.archive, 1):
            try:
                entry = decode_episode(self.archive.line(episode))
            except EpisodeLineError as error:
                self.problems.append(f"{episode} is left out: {error}")
                continue
            taken = next((fact for fact in entry.facts if isinstance(fact, EpisodeTaken)), None)
            if taken is not None:
                table.fold("plan", number, taken.request)
            table.fold("outcomes", entry.sequence, entry.outcome)

    # --- one episode ---

    async def record(self, episode: str) -> EpisodeRecord:
        """All that is recorded of an episode, with what has changed of it since it was archived.

        Raises InputError, with the nearest names, for one that the run has not, EpisodeLineError where it cannot be read.
        """
        found = await self.find(episode)
        if found is None:
            raise InputError(await self._unknown(episode))
        return found

    async def find(self, episode: str) -> EpisodeRecord | None:
        """As `record`, but None for an episode that the run has not."""
        found = await self._archived(episode)
        if found is None and self.bus is not None:
            stored = await self._stored(episode)
            # The recorder may have archived and purged it meanwhile, so that only a part of its facts was read.
            found = await self._archived(episode) or stored
        return found

    async def _archived(self, episode: str) -> EpisodeRecord | None:
        await asyncio.to_thread(self.archive.refresh)
        if episode not in self.archive:
            return None
        line = await asyncio.to_thread(self.archive.line, episode)
        return await self.record_of_entry(decode_episode(line), damaged(line))

    async def record_of_entry(self, entry: ArchivedEpisode, damage: list[str] | None = None) -> EpisodeRecord:
        """The record of a line of the archive, with the payloads that its facts refer to."""
        payloads = await self._payloads(list(entry.facts))
        sequences = entry.sequences or [0] * len(entry.facts)
        return record_of(entry.episode, list(entry.facts), sequences, entry.outcome, payloads, damage)

    async def _stored(self, episode: str) -> EpisodeRecord | None:
        assert self.bus is not None  # noqa: S101
        if not is_key(episode):
            return None
        # The outcome first: an episode that has one gets no more facts.
        outcomes = await self.bus.read_key("outcomes", episode)
        stored = await self.bus.read_key("trace", episode)
        request = await self.bus.get_last(EpisodeRequested, episode)
        facts = [item for item in stored if item.event is not None]
        outcome = next((item.event for item in outcomes if isinstance(item.event, AnyOutcome)), None)
        if not facts and request is None:
            return None
        events: list[Event] = [item.event for item in facts if item.event is not None]
        record = record_of(episode, events, [item.sequence for item in facts], outcome, await self._payloads(events))
        if record.request is None and request is not None and isinstance(request.event, EpisodeRequested):
            record = replace(record, request=request.event)
        return record

    async def _payloads(self, events: list[Event]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for ref in payloads_of(events):
            data = await self.blob(ref)
            if data is not None:
                found[ref.hash] = data
        return found

    async def blob(self, ref: BlobRef) -> bytes | None:
        """A payload, from the archive if it is there; None where it is gone."""
        path = self.run_dir / "archive" / BLOBS / Path(ref.hash).name
        with contextlib.suppress(OSError):
            return await asyncio.to_thread(path.read_bytes)
        if self.bus is None:
            return None
        try:
            return await self.bus.get_blob(ref)
        except BlobMissingError:
            return None

    async def _unknown(self, episode: str) -> str:
        names = list((await self.rows()).rows)
        near = difflib.get_close_matches(episode, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"`asearch episodes --run {self.run}` lists all {len(names)}"
        return f"run '{self.run}' has no episode '{episode}'; {hint}"

    # --- telling ---

    def teller(self, request: EpisodeRequested | None) -> StoryTeller:
        """Whoever tells the episode of a request with the run's own agent and tokenizer."""
        loaded = self.agent()
        if loaded is None or request is None:
            return StoryTeller(None, None, None)
        agent, tokenizer = loaded
        return StoryTeller(agent, tokenizer.decode, start_of(request, self.content.settings.agent))

    def agent(self) -> tuple[Agent, Tokenizer] | None:
        """The run's agent and tokenizer, loaded once; None, with `missing_model` set, where the model folder is of no use."""
        if self._loaded is None and not self.missing_model:
            try:
                tokenizer = Tokenizer.load(self.content.model_dir)
                self._loaded = (make_agent(self.content.settings.agent, tokenizer), tokenizer)
            except AsearchError as error:
                self.missing_model = str(error)
        return self._loaded

    # --- streams ---

    def events(self, stream: str, *, start_sequence: int = 1, follow: bool = False) -> AsyncGenerator[Stored, None]:
        """The messages of a stream. Raises InputError where the broker's store is gone."""
        if self.bus is None:
            raise InputError(f"the broker's store of run '{self.run}' is gone: only its archive can be read")
        return self.bus.read(stream, start_sequence=start_sequence, follow=follow)


@contextlib.asynccontextmanager
async def open_run(workspace: Workspace, run: str | None, platform: Platform, actor: str) -> AsyncGenerator[RunSource]:
    """A run to read: the named one, else the live one, else the newest. Raises InputError if there is none.

    A broker that does not run is started on its store, and stopped on leaving.
    """
    content = choose_run(workspace, run)
    run_dir = workspace.run_dir(content.run)
    if not (workspace.broker_folder / "jetstream").is_dir():
        yield RunSource(content, run_dir, None)
        return
    url, started = await workspace.broker(platform)
    try:
        bus = await connect(url, content.run, actor, platform, only_looks=True)
        try:
            source = RunSource(content, run_dir, bus if await _has_streams(bus) else None)
            source.url = url
            yield source
        finally:
            await bus.close()
    finally:
        await workspace.release(started, content.run)


async def _has_streams(bus: Bus) -> bool:
    try:
        await bus.stream_info("plan")
    except ApiRefusal as error:
        if error.err_code != STREAM_MISSING:
            raise
        return False
    return True


def choose_run(workspace: Workspace, run: str | None) -> RunFile:
    """The named run, else the newest live one, else the newest. Raises InputError, ConfigError for what cannot name a run."""
    if run is not None:
        return read_run_file(workspace.run_dir(check_name(run)))
    runs = workspace.live_runs() or workspace.runs()
    if not runs:
        raise InputError(f"there is no run in {workspace.root}: start one with `asearch up`, or name its folder with --runs")
    return runs[-1]
