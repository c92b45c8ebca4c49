"""Ended episodes of a run that lies in its streams: each once, with the update that used it, abandoned updates left out."""

from contextlib import aclosing
from pathlib import Path

import msgspec
import pandas as pd

from actors.runtime.ended_episodes import EndedEpisodes
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.parquet_archive import write_archive
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile
from actors.runtime.run_source import RunSource
from asearch.configuration.settings import Settings
from asearch.traces.ended import EndedEpisode
from schemas.codec import encode
from schemas.events import Event, GroupVerdict, StepTrained, TrainerClaimed
from schemas.records import BlobRef, StepTokens, TrainedEpisode
from schemas.topology import step_tokens_key
from tests.runtime.facts import dropped, requested
from tests.traces.told import told, turn

NAMES = ("t-0-0-0", "t-0-0-1")


def step(lineage: int, number: int, tokens: BlobRef | None, reason: str | None = None) -> StepTrained:
    return StepTrained(
        id=f"step-{lineage}-{number}", model="policy", lineage=lineage, step=number, staleness={}, n_tokens_trained=0,
        verdicts=[GroupVerdict(group="t-0-0", episodes=2, reason=reason)], n_tokens_masked_stale=0, n_tokens_discarded=0,
        empty=False, metrics={}, tokens=tokens,
    )  # fmt: skip


async def recorded(folder: Path) -> RunSource:
    """Two graded episodes of a group, one that nobody took, one that is open; a step that was made again by a second trainer."""
    platform = SystemPlatform()
    bus = MemoryBus(MemoryBroker(platform), "r", "test", platform)
    await bus.ensure_topology()
    for name in NAMES:
        record = told(turn("so </think> <answer> Lima </answer>"), answer="Lima", episode=name)
        assert record.request is not None and record.outcome is not None
        await bus.append(record.request, name)
        for number, fact in enumerate(record.facts):
            await bus.append(replaced(fact, f"{name}-{number}"), name)
        await bus.append(replaced(record.outcome, f"outcome-{name}"), name)
    for name in ("never-taken", "open"):
        await bus.append(requested(name, 0), name)
    await bus.append(dropped("never-taken", "run_ended"), "never-taken")
    for lineage, advantage in ((1, -9.0), (2, 0.5)):
        await bus.append(
            TrainerClaimed(id=f"claim-{lineage}", model="policy", lineage=lineage, step=0, checkpoint=None, trainer="t"), "policy"
        )
        tokens = StepTokens(
            model="policy", lineage=lineage, step=0, episodes=[TrainedEpisode(episode=NAMES[0], advantage=advantage)]
        )
        ref = await bus.put_blob(step_tokens_key("policy", lineage, 0), encode(tokens))
        await bus.append(step(lineage, 0, ref), "policy")
    content = RunFile(
        run="r", settings=Settings(), broker_url="", corpus_url="", model_dir=str(folder / "gone"), train_tasks="", eval_tasks="",
        weights_dir="", supervisor_pid=1, supervisor_started=0.0,
    )  # fmt: skip
    return RunSource(content, folder, bus)


def replaced(event: Event, id: str) -> Event:
    """The same fact under another id."""
    return msgspec.structs.replace(event, id=id)


async def test_every_ended_episode_once_with_the_update_that_counts(tmp_path: Path) -> None:
    episodes = EndedEpisodes(await recorded(tmp_path))
    async with aclosing(episodes.read()) as reader:
        found: list[EndedEpisode] = [each async for each in reader]
    assert [each.record.episode for each in found] == [*NAMES, "never-taken"]
    assert [each.trained.advantage if each.trained else None for each in found] == [0.5, None, None]
    assert [(each.row.fate, each.row.step) for each in found] == [("counted", 0), ("counted", 0), ("", None)]
    assert found[-1].row.question == "q" * 400, "what was asked of an episode that nobody took stands in PLAN"
    assert [(made.lineage, abandoned) for made, abandoned in episodes.steps] == [(1, True), (2, False)]
    assert await episodes.n_requested() == {"train": 4}
    assert episodes.problems == []


async def test_tables_say_what_is_missing(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    report = await write_archive(source, tmp_path)
    assert (report.state, report.rows["episodes"], report.n_without_segments) == ("unfinished", 3, 2)
    assert "gone" in report.missing_model
    assert report.accounting == {"requested": 4, "graded": 2, "dropped": 1, "dead": 0, "counted": 2, "discarded": 0, "queued": 0}
    frame = pd.read_parquet(tmp_path / "episodes-00000.parquet")
    assert frame.advantage.notna().tolist() == [True, False, False]
    assert frame.advantage[0] == 0.5
    assert list(frame.outcome) == ["graded", "graded", "dropped"]
    steps = pd.read_parquet(tmp_path / "steps-00000.parquet")
    assert list(steps.abandoned) == [True, False]
