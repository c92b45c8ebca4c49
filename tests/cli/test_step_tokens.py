"""The tokens of updates of a real run: kept in its archive, and the same tokens as the facts of its episodes tell of."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from actors.runtime.episode_lines import damaged, decode_episode
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_source import RunSource, open_run
from actors.runtime.workspace import Workspace
from asearch.agents.recorded import fact_of, fold, start_of
from asearch.agents.segments import segments
from asearch.learning.staleness import segment_age
from schemas.codec import decode_step_tokens
from schemas.events import StepTrained, TokensGenerated, ToolReturned
from schemas.records import Segment, StepTokens, TrainedEpisode, Version

SMALL = (
    *("warmstart.steps=150", "run.groups_per_step=4", "run.group_size=4", "evaluation.questions=9", "viewer.enabled=false"),
    *("trainer.minibatches=1",),
)


def train(root: Path) -> None:
    """A short run of the real command, of a policy that knows the protocol."""
    options = [part for setting in SMALL for part in ("-s", setting)]
    place = ("--runs", str(root), "--run", "kept", "--seed", "3", "--steps", "4", "--json")
    command = (sys.executable, "-m", "actors.cli.main", "train", "toy", *place, *options)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr


async def segments_of(source: RunSource, episode: str) -> dict[str, Segment]:
    """What an episode's facts come to, folded by the run's own agent."""
    record = await source.record(episode)
    agent = source.agent()
    assert agent is not None and record.request is not None
    start = start_of(record.request, source.content.settings.agent)
    facts = [fact_of(each, record.result_of(each) if isinstance(each, ToolReturned) else None) for each in record.facts]
    return {each.id: each for each in segments(fold(agent[0], start, [fact for fact in facts if fact is not None]))}


async def compare(source: RunSource, step: StepTrained, told: TrainedEpisode, seen: Counter[str]) -> None:
    """Trained are generated tokens of allowed age; those that the updated policy itself sampled have the log-probs of then."""
    folded = await segments_of(source, told.episode)
    for part in told.segments:
        segment = folded[part.segment]
        positions = np.frombuffer(part.columns["positions"].data, "<u4")
        logprobs = np.frombuffer(part.columns["logprobs"].data, "<f4")
        mask = np.frombuffer(segment.columns["mask"].data, "u1")
        assert mask[positions].all()
        behaviour = np.frombuffer(segment.columns["logprobs"].data, "<f4")[positions]
        claims = (Version(lineage=1, step=0),)
        ages = segment_age(segment.versions, len(mask), step.lineage, step.step, claims).staleness_T
        is_trained = (ages >= 0) & (ages <= source.content.settings.run.eta)
        assert positions.tolist() == np.flatnonzero(is_trained).tolist()
        on_policy = ages[positions] == 0
        np.testing.assert_allclose(logprobs[on_policy], behaviour[on_policy], atol=1e-3)
        seen["on_policy"] += int(on_policy.sum())
        seen["tokens"] += len(positions)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_updates_did_is_kept_and_fits_the_facts(tmp_path: Path) -> None:
    train(tmp_path)
    await check_run(Workspace(tmp_path), "kept")


async def check_run(workspace: Workspace, run: str) -> Counter[str]:
    """Every record of an update that a finished run's journal names; what was compared."""
    seen: Counter[str] = Counter()
    async with open_run(workspace, run, SystemPlatform(), "viewer") as source:
        steps = [each.event async for each in source.events("policy") if isinstance(each.event, StepTrained)]
        for step in steps:
            assert (step.tokens is None) == step.empty
            if step.tokens is None:
                continue
            data = (source.run_dir / "archive" / "blobs" / step.tokens.hash).read_bytes()
            tokens: StepTokens = decode_step_tokens(data)
            assert (tokens.model, tokens.lineage, tokens.step) == (step.model, step.lineage, step.step)
            before = seen["tokens"]
            for told in tokens.episodes:
                await compare(source, step, told, seen)
            assert seen["tokens"] - before == step.n_tokens_trained
            seen["steps"] += 1
        # The recorder purges every few seconds: what it had no time for is archived all the same.
        left = {each.key[0] async for each in source.events("blobs") if each.key[0].startswith("step-")}
        assert left <= {step.tokens.episode for step in steps if step.tokens is not None}
        for episode in source.archive:
            assert damaged(source.archive.line(episode)) == []
            facts = decode_episode(source.archive.line(episode)).facts
            first = [each.request_hash for each in facts if isinstance(each, TokensGenerated) and each.offset == 0]
            assert all(len(each) == 16 for each in first)
    assert seen["steps"] > 0 and seen["on_policy"] > 0, seen
    return seen
