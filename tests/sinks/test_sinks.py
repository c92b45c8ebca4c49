"""Sinks read a run's streams: what they write equals the report, nothing is written twice, whatever happens in between."""

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

from actors.runtime.broker import start_broker
from actors.runtime.jetstream import connect
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, write_run_file
from actors.sinks import tensorboard as tensorboard_sink
from actors.sinks.feeding import feed
from actors.sinks.points import SinkUnavailableError, Written, due
from actors.sinks.tensorboard import TensorBoardSink
from actors.sinks.wandb import WandbSink
from asearch.errors import InputError
from tests.cli.audited import key_of, put
from tests.cli.frames import folded
from tests.cli.left_over import processes_of
from tests.evaluation.stories import Story, two_steps
from tests.runtime.facts import until

BLOCK = 32768


def never() -> bool:
    return False


@asynccontextmanager
async def bus_with(story: Story) -> AsyncIterator[MemoryBus]:
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), story.run, "sink", platform)
    await put(bus, story)
    try:
        yield bus
    finally:
        await bus.close()


async def write(story: Story, logdir: Path) -> Written:
    async with bus_with(story) as bus:
        return await feed(bus, logdir.parent, TensorBoardSink(logdir), never)


def first(story: Story, n: int) -> Story:
    """The story as far as it was told then."""
    return Story(run=story.run, settings=story.settings, told=story.told[:n])


def of(logdir: Path) -> EventAccumulator:
    return EventAccumulator(str(logdir), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()


def scalars(logdir: Path) -> dict[str, list[tuple[int, float]]]:
    held = of(logdir)
    return {tag: [(event.step, event.value) for event in held.Scalars(tag)] for tag in held.Tags()["scalars"]}


def equal(a: list[tuple[int, float]], b: list[tuple[int, Any]]) -> bool:
    return [step for step, _ in a] == [step for step, _ in b] and [v for _, v in a] == pytest.approx([v for _, v in b])


async def test_what_is_written_is_what_the_report_says(tmp_path: Path) -> None:
    story = two_steps()
    assert await write(story, tmp_path / "tb") == Written(2, {"before", "after"}, True)
    report, found = folded(story), scalars(tmp_path / "tb")
    curve = report.curve()
    for name in ("reward", "accuracy", "searches_per_episode", "staleness_mean", "staleness_max", "idle_s", "tokens_trained"):
        assert equal(found[f"train/{name}"], [(point["step"], point[name]) for point in curve]), name
    for label, step in (("before", 0), ("after", 2)):
        told = report.evaluation(label)
        assert equal(found[f"evaluation/{label}/accuracy"], [(step, told["accuracy"])])
        assert equal(found[f"evaluation/{label}/dropped"], [(step, told["dropped"])])
    for term, n in report.accounts.all_terms().items():
        assert equal(found[f"accounting/{term}"], [(2, n)])
    assert equal(found["tokens/masked_stale"], [(2, 3)])
    events = of(tmp_path / "tb").Scalars("train/reward")
    assert [event.wall_time for event in events] == [step.at_ns / 1e9 for step in report.journal.in_order], "its own time"


async def test_staleness_is_a_histogram_and_the_start_a_text(tmp_path: Path) -> None:
    await write(two_steps(), tmp_path / "tb")
    held = of(tmp_path / "tb")
    last = held.Histograms("train/staleness")[-1].histogram_value
    assert (last.num, last.sum, last.min, last.max) == (17, 12, 0, 1)
    assert dict(zip(last.bucket_limit, last.bucket, strict=True)) == {-0.5: 0, 0.5: 5, 1.5: 12}
    assert b"recipe toy, seed 0" in held.Tensors("run/started")[0].tensor_proto.string_val[0]
    assert b'"groups_per_step":2' in held.Tensors("run/config")[0].tensor_proto.string_val[0]


async def test_called_again_it_writes_nothing_twice(tmp_path: Path) -> None:
    story = two_steps()
    await write(story, tmp_path / "whole")
    for n in range(1, len(story.told) + 1, 3):
        await write(first(story, n), tmp_path / "parts")
    await write(story, tmp_path / "parts")
    assert await write(story, tmp_path / "parts") == Written(2, {"before", "after"}, True)
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")
    assert len(of(tmp_path / "parts").Tensors("run/started")) == 1


async def test_a_record_that_was_torn_is_written_again(tmp_path: Path) -> None:
    story = two_steps()
    await write(story, tmp_path / "tb")
    whole = scalars(tmp_path / "tb")
    [path] = (tmp_path / "tb").glob("*tfevents*")
    os.truncate(path, path.stat().st_size - 7)
    assert "accounting/requested" not in scalars(tmp_path / "tb")
    assert await write(story, tmp_path / "tb") == Written(2, {"before", "after"}, True)
    assert scalars(tmp_path / "tb") == whole


async def test_steps_that_are_trained_again_are_not_written_again(tmp_path: Path) -> None:
    story = two_steps()
    at = next(n for n, (stream, _, event) in enumerate(story.told) if stream == "policy" and getattr(event, "step", None) == 1)
    await write(first(story, at + 1), tmp_path / "tb")
    n_before = len(scalars(tmp_path / "tb")["train/reward"])
    story.claim(2, 0)
    story.train(0, [("t-0-0", 2, None), ("t-1-0", 2, "no_signal"), ("t-1-1", 2, None)], lineage=2, staleness={0: 40})
    written = await write(story, tmp_path / "tb")
    steps = [step for step, _ in scalars(tmp_path / "tb")["train/reward"]]
    assert n_before == 2 and steps == [0, 1] and written.next_step == 2


def test_a_step_waits_for_its_episodes() -> None:
    """OUTCOMES may be read later than POLICY: a point must not be of half its episodes."""
    story = two_steps()
    late = [item for item in story.told if item[0] == "outcomes"]
    story.told = [item for item in story.told if item[0] != "outcomes"]
    assert due(folded(story), Written(), final=False) == []
    story.told += late
    assert [type(point).__name__ for point in due(folded(story), Written(), final=True)] == [
        *("StepPoint", "StepPoint", "EvaluationPoint", "EvaluationPoint", "EndPoint")
    ]


async def test_a_live_run_is_followed_to_its_end(tmp_path: Path) -> None:
    story = two_steps()
    late, start = story.told[30:], first(story, 30)
    async with bus_with(start) as bus:
        live = True
        feeding = asyncio.create_task(feed(bus, tmp_path, TensorBoardSink(tmp_path / "tb"), lambda: live))
        for _, _, event in late[:-1]:
            await bus.append(event, key_of(event))
        await until(lambda: (tmp_path / "tb").exists() and len(scalars(tmp_path / "tb").get("train/reward", [])) == 2)
        assert not feeding.done()
        await bus.append(late[-1][2], key_of(late[-1][2]))
        await asyncio.sleep(0.3)
        assert "accounting/requested" not in scalars(tmp_path / "tb"), "a step may be finished after the end was said"
        live = False
        async with asyncio.timeout(10):
            assert await feeding == Written(2, {"before", "after"}, True)


async def test_another_run_of_the_same_name_is_refused(tmp_path: Path) -> None:
    await write(two_steps(), tmp_path / "tb")
    other = two_steps()
    started = other.told[0][2]
    other.told[0] = ("plan", 1, type(started)(id="run", run="r", recipe="toy", recipe_hash="h", seed=9, at_ns=5, config=b""))
    with pytest.raises(InputError, match="another run called 'r'"):
        await write(other, tmp_path / "tb")


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("tensorboard.summary.writer.event_file_writer", lambda path: TensorBoardSink(path), "tensorboard"),
        ("wandb", lambda path: WandbSink(path, "p", offline=True), "wandb"),
    ],
)
def test_without_the_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, make: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SinkUnavailableError, match=rf"pip install 'asearch\[{extra}\]'"):
        make(tmp_path)


def test_neither_torch_nor_tensorflow_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from actors.sinks.tensorboard import TensorBoardSink; from schemas.events import RunStarted;"
        f"sink = TensorBoardSink(pathlib.Path({str(tmp_path)!r}));"
        "sink.open(RunStarted(id='r', run='r', recipe='t', recipe_hash='h', seed=0, config=b'')); sink.close();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'tensorflow', 'wandb')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert tensorboard_sink.RUN_TAG in str(of(tmp_path).Tags()["tensors"])


# --- the command, on an ended run in a real broker's store ---


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "runs"
    story = two_steps()

    async def make() -> None:
        platform = SystemPlatform()
        (root / ".broker").mkdir(parents=True)
        broker = await start_broker(root / ".broker", platform)
        bus = await connect(broker.url, story.run, "test", platform)
        await put(bus, story)
        await bus.close()
        await broker.stop()

    asyncio.run(make())
    (root / story.run).mkdir()
    paths = dict.fromkeys(("corpus_url", "model_dir", "train_tasks", "eval_tasks", "weights_dir"), "")
    content = RunFile(run="r", settings=story.settings, broker_url="", supervisor_pid=2**22 - 1, supervisor_started=1.0, **paths)
    write_run_file(root / story.run, content)
    yield root
    assert processes_of(root) == []


def asearch(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "actors.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def test_the_command_writes_an_ended_run_and_a_second_time_nothing(runs: Path) -> None:
    for _ in range(2):
        done = asearch("sink", "tensorboard", "r", "--runs", runs)
        assert done.returncode == 0 and "run 'r': 2 steps, 2 evaluations and the end of the run" in done.stderr, done.stderr
    assert len(scalars(runs / "r" / "tensorboard")["train/reward"]) == 2
    missing = asearch("sink", "tensorboard", "nothing", "--runs", runs)
    assert missing.returncode == 2 and "known: r" in missing.stderr and "Traceback" not in missing.stderr


def wandb_records(folder: Path) -> Iterator[Any]:
    """All records of all offline runs below a folder: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, parts = path.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while at + 7 <= len(data):
            if BLOCK - at % BLOCK < 7:
                at += BLOCK - at % BLOCK
                continue
            size, kind = struct.unpack_from("<HB", data, at + 4)
            parts += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                yield wandb_internal_pb2.Record.FromString(parts)
                parts = b""


@pytest.mark.slow
def test_weights_and_biases_offline_holds_every_step_once_and_no_key(runs: Path) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    for _ in range(2):
        done = asearch("sink", "wandb", "r", "--runs", runs, "--offline", WANDB_API_KEY=key)
        assert done.returncode == 0, done.stderr
        assert key not in done.stdout + done.stderr
    folder = runs / "r" / "wandb-records"
    records = list(wandb_records(folder))
    rows = [{(item.key or ".".join(item.nested_key)): item.value_json for item in record.history.item} for record in records]
    rewards = [(int(row["policy_step"]), float(row["train/reward"])) for row in rows if "train/reward" in row]
    assert equal(rewards, [(point["step"], point["reward"]) for point in folded(two_steps()).curve()])
    assert sum("evaluation/before/accuracy" in row for row in rows) == 1
    summary = {item.key or ".".join(item.nested_key) for record in records for item in record.summary.update}
    assert {"accounting/requested", "ended"} <= summary
    [run_id] = {record.run.run_id for record in records if record.run.run_id}
    assert run_id.startswith("r-")
    for path in runs.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_weights_and_biases_without_a_key_says_what_to_do(runs: Path, tmp_path: Path) -> None:
    done = asearch("sink", "wandb", "r", "--runs", runs, WANDB_API_KEY="", HOME=str(tmp_path), NETRC=str(tmp_path / "none"))
    assert done.returncode == 2 and "wandb login" in done.stderr and "Traceback" not in done.stderr, done.stderr
