"""In which state each run of a folder is and how far it has come, without reading its streams."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from actors.runtime.broker import Broker
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.jsapi import STREAM_MISSING, ApiRefusal
from actors.runtime.platform import Platform
from actors.runtime.run_files import RunFile, read_url
from actors.runtime.workspace import Workspace, is_live
from asearch.errors import AsearchError, BusError
from schemas.events import AnyOutcome, CheckpointCommitted, PlanFolded, RunEnded, RunStarted, StepTrained
from schemas.topology import TOPOLOGY, broker_stream

RESULT = "result.json"
LOOK_S = 5.0
"""How long a look at the broker may take for one run."""
EVALUATION_MESSAGES = 5000
"""Outcomes up to which an evaluation is counted by reading them."""


class RunState(msgspec.Struct, kw_only=True):
    """A run in a list. Names are those of `asearch runs --json`; None is not known."""

    run: str
    state: str
    """`live`, `preparing`, `ended`, `crashed` (its supervisor is dead, and it has not ended) or `never started`."""
    ended: str | None = None
    """Why it ended: `completed`, `stopped` or the name of an error."""
    recipe: str
    seed: int
    step: int | None = None
    """Policy updates so far."""
    planned_steps: int
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    episodes_requested: int | None = None
    episodes_ended: int | None = None
    started_ns: int | None = None
    started: str | None = None
    """The same as an ISO 8601 time."""
    wall_s: float | None = None
    n_bytes: int = 0
    """Size on disk: its folder, and its streams in the broker's store."""
    page: str = ""
    """URL of its page, where one is or was served."""
    note: str = ""
    """Why something is not known."""


async def run_states(workspace: Workspace, platform: Platform, url: str | None = None) -> list[RunState]:
    """Every run, the newest last. The broker is asked only where a run has left no result: the one at `url`, else the
    workspace's, which is started for that if it does not run.
    """
    contents = workspace.runs()
    found = [_from_files(workspace, content) for content in contents]
    open_ones = [(state, content) for state, content in zip(found, contents, strict=True) if state.state != "ended"]
    if open_ones:
        await _ask_broker(workspace, platform, open_ones, url)
    for state in found:
        state.started = None if state.started_ns is None else _iso(state.started_ns)
    return found


def _iso(at_ns: int) -> str:
    from asearch.traces.summary import utc

    return utc(at_ns).replace(" ", "T")


def _from_files(workspace: Workspace, content: RunFile) -> RunState:
    run_dir = workspace.run_dir(content.run)
    state = RunState(
        run=content.run,
        state="crashed",
        recipe=content.settings.recipe,
        seed=content.settings.seed,
        planned_steps=content.settings.run.steps,
        n_bytes=_size(run_dir) + sum(_size(folder) for folder in _stream_folders(workspace, content.run)),
        page=read_url(run_dir),
    )
    if is_live(content):
        state.state = "live" if content.corpus_url else "preparing"
        return state
    result = _result(run_dir)
    if result is not None:
        _take_result(state, result, run_dir)
    return state


def _stream_folders(workspace: Workspace, run: str) -> list[Path]:
    store = workspace.broker_folder / "jetstream"
    return [path for stream in TOPOLOGY.streams for path in store.glob(f"*/streams/{broker_stream(run, stream.name)}")]


def _size(folder: Path) -> int:
    """Bytes that the files below a folder take, links not followed; files that vanish meanwhile do not count."""
    total = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def _result(run_dir: Path) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode((run_dir / RESULT).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None


def _take_result(state: RunState, result: Mapping[str, Any], run_dir: Path) -> None:
    state.state, state.ended = "ended", cast("str | None", result.get("ended"))
    state.step, state.wall_s = result.get("steps"), result.get("wall_s")
    accounting = result.get("accounting", {})
    state.episodes_requested = accounting.get("requested")
    state.episodes_ended = sum(accounting.get(term, 0) for term in ("graded", "dropped", "dead"))
    evaluations = result.get("eval", {})
    state.accuracy_before = evaluations.get("before", {}).get("accuracy")
    state.accuracy_after = evaluations.get("after", {}).get("accuracy")
    written_ns = (run_dir / RESULT).stat().st_mtime_ns
    state.started_ns = written_ns - int((state.wall_s or 0.0) * 1e9)


# --- what only the broker knows ---


async def _ask_broker(workspace: Workspace, platform: Platform, runs: list[tuple[RunState, RunFile]], url: str | None) -> None:
    if not (workspace.broker_folder / "jetstream").is_dir():
        for state, _ in runs:
            state.note = "the broker's store is gone"
        return
    if url is not None:
        await _ask_at(url, platform, runs)
        return
    started: Broker | None = None
    try:
        url, started = await workspace.broker(platform)
    except (AsearchError, OSError) as error:
        for state, _ in runs:
            state.note = f"the broker cannot be asked: {error}"
        return
    try:
        await _ask_at(url, platform, runs)
    finally:
        await workspace.release(started, "")


async def _ask_at(url: str, platform: Platform, runs: list[tuple[RunState, RunFile]]) -> None:
    for state, content in runs:
        try:
            async with asyncio.timeout(LOOK_S):
                await _look(state, content, url, platform)
        except (BusError, TimeoutError) as error:
            state.note = f"the broker cannot be asked: {str(error) or 'timeout'}"


async def _look(state: RunState, content: RunFile, url: str, platform: Platform) -> None:
    bus = await connect(url, content.run, "operator", platform, only_looks=True)
    try:
        await _take_streams(state, bus)
    except ApiRefusal as error:
        if error.err_code != STREAM_MISSING:
            raise
        _never_started(state)
    finally:
        await bus.close()


def _never_started(state: RunState) -> None:
    if state.state == "crashed":
        state.state, state.note = "never started", "it has no streams: its actors never ran, or the broker's store was deleted"


async def _take_streams(state: RunState, bus: Bus) -> None:
    began = await bus.get_last(RunStarted, state.run)
    if began is None or not isinstance(began.event, RunStarted):
        _never_started(state)
        return
    state.started_ns = began.event.at_ns
    ended = await bus.get_last(RunEnded, state.run)
    if ended is not None and isinstance(ended.event, RunEnded):
        # It ended, and was killed before its result was written.
        state.ended = ended.event.reason
        if state.state == "crashed":
            state.state = "ended"
    state.step = await _step(bus)
    outcomes = await bus.stream_info("outcomes")
    state.episodes_ended = outcomes.last_sequence
    if outcomes.last_sequence <= EVALUATION_MESSAGES and outcomes.first_sequence <= 1:
        await _count_evaluations(state, bus)
    else:
        await _folded_evaluations(state, bus)


async def _step(bus: Bus) -> int:
    """Updates so far, by the newest claim, update or checkpoint of the trainer's journal."""
    trained = await bus.get_last(StepTrained, "policy")
    if trained is not None and isinstance(trained.event, StepTrained):
        return trained.event.step + 1
    saved = await bus.get_last(CheckpointCommitted, "policy")
    return saved.event.step if saved is not None and isinstance(saved.event, CheckpointCommitted) else 0


async def _count_evaluations(state: RunState, bus: Bus) -> None:
    right: dict[str, list[bool]] = {}
    async for stored in bus.read("outcomes", follow=False):
        outcome = stored.event
        if isinstance(outcome, AnyOutcome) and outcome.label:
            right.setdefault(outcome.label, []).append(bool(getattr(outcome, "correct", False)))
    state.accuracy_before, state.accuracy_after = (
        round(sum(each) / len(each), 4) if (each := right.get(label)) else None for label in ("before", "after")
    )


async def _folded_evaluations(state: RunState, bus: Bus) -> None:
    """As of the newest fold of the plan: a long run has one that is later than its first evaluation."""
    folded = await bus.get_last(PlanFolded, state.run)
    if folded is None or not isinstance(folded.event, PlanFolded):
        return
    known = folded.event.evaluations
    state.accuracy_before, state.accuracy_after = (
        round(known[label].correct / known[label].ended, 4) if label in known and known[label].ended else None
        for label in ("before", "after")
    )
