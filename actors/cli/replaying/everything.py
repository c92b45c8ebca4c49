"""Every episode of a run replayed: those of the archive line by line, then those that only the streams hold."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator

import msgspec

from actors.cli.replaying.lines import OutcomeLines, Replayer, lines_of, of_line
from actors.cli.replaying.plan import Plan, read_plan
from actors.cli.replaying.single import replayer_of
from actors.runtime.archive import EpisodeNames
from actors.runtime.run_source import RunSource
from asearch.traces.verdicts import Difference, Verdict
from schemas.archive import EPISODES

MAX_DIFFERENCES = 100
"""Differences that are told; all are counted."""
LINES_AT_ONCE = 32
"""Lines between two chances for the connection to the broker to say that it lives."""


class Tally(msgspec.Struct, kw_only=True):
    """The verdict on a run, as `--json` prints it. `episodes` = `identical` + `different`."""

    run: str
    episodes: int = 0
    identical: int = 0
    """Nothing differs, as far as the facts go."""
    different: int = 0
    partial: int = 0
    """Of all, those that ended, or stand, before their own end: dropped, dead, or still open."""
    graded_again: int = 0
    """Of all, those whose reward was computed again, too."""
    n_facts: int = 0
    n_differences: int = 0
    differences: list[Difference] = []

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs anywhere."""
        return self.n_differences == 0

    def take(self, verdict: Verdict) -> None:
        """One more episode."""
        self.episodes += 1
        self.identical += verdict.is_identical
        self.different += not verdict.is_identical
        self.partial += verdict.partial
        self.graded_again += verdict.graded
        self.n_facts += verdict.n_facts
        self.note(verdict.differences)

    def note(self, differences: list[Difference]) -> None:
        """Differences of an episode, or of what is none."""
        self.n_differences += len(differences)
        self.differences = [*self.differences, *differences][:MAX_DIFFERENCES]


async def replay_all(source: RunSource, progress: Callable[[int], None]) -> Tally:
    """Replay every episode of a run. `progress` is told how many are done."""
    plan = await read_plan(source)
    replayer, tally, names = replayer_of(source, plan.keys, has_ended=plan.has_ended), Tally(run=source.run), EpisodeNames()
    outcomes = await asyncio.to_thread(OutcomeLines, replayer.folder, has_ended=plan.has_ended)
    tally.note(outcomes.differences)
    for number, verdict in enumerate(_archived(replayer, outcomes, names), 1):
        if verdict.episode:
            tally.take(verdict)
        else:
            # Whose line it was shows below: an episode is missing.
            tally.note(verdict.differences)
        if number % LINES_AT_ONCE == 0:
            progress(tally.episodes)
            await asyncio.sleep(0)
    async for verdict in _elsewhere(source, plan, replayer, [*plan.requested, *outcomes.left(names)], names):
        tally.take(verdict)
        progress(tally.episodes)
    tally.note(await asyncio.to_thread(lambda: list(replayer.other_blobs())))
    return tally


def _archived(replayer: Replayer, outcomes: OutcomeLines, names: EpisodeNames) -> Iterator[Verdict]:
    """A verdict on every line of `episodes.jsonl`. A last line that a recorder had no time to finish is left out."""
    path = replayer.folder / EPISODES
    for number, line in lines_of(path):
        if not line.endswith(b"\n") and not replayer.has_ended:
            return
        verdict = replayer.line(number, line)
        found = outcomes.compare(number, line)
        if verdict.episode in names:
            found.append(of_line(verdict.episode, path, number, "episode", verdict.episode, "an earlier line has it"))
        if not line.endswith(b"\n"):
            found.append(of_line(verdict.episode, path, number, "line", "without its end", "every line has one"))
        names.add(verdict.episode)
        yield msgspec.structs.replace(verdict, differences=[*verdict.differences, *found])


async def _elsewhere(
    source: RunSource, plan: Plan, replayer: Replayer, episodes: list[str], names: EpisodeNames
) -> AsyncGenerator[Verdict]:
    """A verdict on every episode that the archive has not: those in flight, and those that are lost."""
    for episode in dict.fromkeys(episodes):
        if episode in names:
            continue
        names.add(episode)
        record = await source.find(episode)
        if record is None or (plan.has_ended and not record.facts and record.outcome is None):
            yield _missing(episode)
        else:
            yield replayer.judge(record)


def _missing(episode: str) -> Verdict:
    lost = Difference(
        episode=episode,
        fact=None,
        type="episode",
        id=episode,
        field="facts",
        recorded="neither archive nor streams have any",
        replayed="the archive of an ended run has every episode",
    )
    return Verdict(episode=episode, n_facts=0, partial=True, graded=False, differences=[lost])
