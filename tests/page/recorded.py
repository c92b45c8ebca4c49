"""A real run of the toy recipe, kept as it was recorded: what the tests of the page show.

Made with `asearch train toy --run recorded --seed 5 --steps 5 -s run.groups_per_step=4 -s run.group_size=4
-s evaluation.questions=12`, and then `python -m tests.page.recorded RUNS`.
"""

import asyncio
import base64
import gzip
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from actors.runtime.bus import Bus
from actors.runtime.episode_lines import encode_episode
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, read_run_file, write_run_file
from actors.runtime.run_source import open_run
from actors.runtime.workspace import Process, Workspace
from schemas.archive import ArchivedEpisode
from schemas.codec import decode_event, encode
from schemas.events import AnyOutcome, Event, StepTrained, TraceFact

FOLDER = Path(__file__).parent / "recording"
RUN = "recorded"
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Recorded:
    """One message of a stream."""

    stream: str
    key: tuple[str, ...]
    event: Event


@lru_cache(maxsize=1)
def messages() -> tuple[Recorded, ...]:
    """Every message of PLAN, POLICY, TRACE and OUTCOMES, each stream in its order."""
    with gzip.open(FOLDER / "messages.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    return tuple(Recorded(line["stream"], tuple(line["key"]), decode_event(base64.b64decode(line["data"]))) for line in lines)


def of_stream(*streams: str) -> list[Recorded]:
    """The messages of some streams."""
    return [each for each in messages() if each.stream in streams]


def episodes() -> dict[str, list[Recorded]]:
    """The facts of every episode in order."""
    found: dict[str, list[Recorded]] = {}
    for each in of_stream("trace"):
        found.setdefault(each.key[-1], []).append(each)
    return found


def make_run_dir(root: Path, run: str, broker_url: str, *, live: bool) -> Path:
    """The folder of a run: its settings, tokenizer and samples. `live`: this process stands in for its supervisor."""
    folder = root / run
    model = folder / "model"
    model.mkdir(parents=True)
    (folder / "logs").mkdir()
    for name in MODEL:
        shutil.copy(FOLDER / name, model)
    content = msgspec.json.decode((FOLDER / "run.json").read_bytes(), type=RunFile)
    shutil.copy(FOLDER / "samples.jsonl", folder)
    me = Process.own()
    viewer = msgspec.structs.replace(content.settings.viewer, port=0)
    content = msgspec.structs.replace(
        content,
        run=run,
        settings=msgspec.structs.replace(content.settings, viewer=viewer),
        broker_url=broker_url,
        corpus_url="http://127.0.0.1:1",
        model_dir=str(model),
        supervisor_pid=me.pid if live else 1 << 30,
        supervisor_started=me.started if live else 0.0,
    )
    write_run_file(folder, content)
    _write_archive(folder / "archive")
    if not live:
        shutil.copy(FOLDER / "result.json", folder)
    return folder


def _write_archive(folder: Path) -> None:
    folder.mkdir()
    shutil.copytree(FOLDER / "blobs", folder / "blobs")
    facts: dict[str, list[tuple[int, Event]]] = {}
    for sequence, each in enumerate(of_stream("trace"), 1):
        facts.setdefault(each.key[-1], []).append((sequence, each.event))
    with (folder / "episodes.jsonl").open("wb") as file:
        for sequence, each in enumerate(of_stream("outcomes"), 1):
            assert isinstance(each.event, AnyOutcome)
            file.write(encode_episode(sequence, each.event, facts[each.key[-1]]) + b"\n")


async def append_all(bus: Bus, found: Iterable[Recorded]) -> None:
    """Append messages in their order."""
    for each in found:
        await bus.append(each.event, *each.key)


async def append_run(bus: Bus) -> None:
    """Everything that was recorded, with the tokens of the updates."""
    for each in of_stream("policy"):
        if isinstance(each.event, StepTrained) and each.event.tokens is not None:
            await bus.put_blob(each.event.tokens.episode, (FOLDER / "blobs" / each.event.tokens.hash).read_bytes())
    async with asyncio.TaskGroup() as tasks:
        for stream in ("plan", "policy", "trace", "outcomes"):
            tasks.create_task(append_all(bus, of_stream(stream)))


# --- how it was made ---


async def _dump(root: Path) -> None:
    FOLDER.mkdir(exist_ok=True)
    async with open_run(Workspace(root), RUN, SystemPlatform(), "view") as source:
        assert source.bus is not None
        found: list[Recorded] = []
        for stream in ("plan", "policy"):
            async with aclosing(source.bus.read(stream, follow=False)) as reader:
                async for stored in reader:
                    assert stored.event is not None
                    found.append(Recorded(stream, tuple(stored.key or ()), stored.event))
        found.extend(_archived(source.run_dir))
        run_dir = source.run_dir
        (FOLDER / "blobs").mkdir(exist_ok=True)
        for each in found:
            if isinstance(each.event, StepTrained) and each.event.tokens is not None:
                data = await source.blob(each.event.tokens)
                assert data is not None
                (FOLDER / "blobs" / each.event.tokens.hash).write_bytes(data)
    with gzip.GzipFile(FOLDER / "messages.jsonl.gz", "wb", mtime=0) as file:
        for each in found:
            data = base64.b64encode(encode(each.event)).decode()
            file.write(json.dumps({"stream": each.stream, "key": each.key, "data": data}).encode() + b"\n")
    content = read_run_file(run_dir)
    bare = msgspec.structs.replace(content, model_dir="", train_tasks="", eval_tasks="", weights_dir="")
    (FOLDER / "run.json").write_bytes(msgspec.json.encode(bare))
    for name in MODEL:
        shutil.copy(Path(content.model_dir) / name, FOLDER)
    for name in ("samples.jsonl", "result.json"):
        shutil.copy(run_dir / name, FOLDER)


def _archived(run_dir: Path) -> Iterator[Recorded]:
    lines = (run_dir / "archive" / "episodes.jsonl").read_bytes().splitlines()
    archived = sorted((msgspec.json.decode(line, type=ArchivedEpisode) for line in lines), key=lambda each: each.sequence)
    facts = sorted(
        ((place, fact) for each in archived for place, fact in zip(each.sequences, each.facts, strict=True)),
        key=lambda pair: pair[0],
    )
    for _, fact in facts:
        yield Recorded("trace", (fact.episode,), fact)
    for each in archived:
        yield Recorded("outcomes", (each.episode,), each.outcome)


def facts_of(found: Iterable[Recorded]) -> list[TraceFact]:
    """The facts among messages."""
    return [each.event for each in found if isinstance(each.event, TraceFact)]


if __name__ == "__main__":
    asyncio.run(_dump(Path(sys.argv[1])))
