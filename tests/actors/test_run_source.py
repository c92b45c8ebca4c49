"""A run read while it goes on: names that are none, a broker that is away, an episode that is purged while it is read."""

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from actors.runtime.archive import ArchiveError
from actors.runtime.episode_lines import EpisodeLineError, encode_episode
from actors.runtime.event_history import archived_messages
from actors.runtime.following import follow
from actors.runtime.run_files import write_run_file
from actors.runtime.run_source import RunSource, choose_run
from actors.runtime.workspace import Workspace
from asearch.errors import BusError, ConfigError, InputError
from schemas.archive import EPISODES, OUTCOMES, ArchivedOutcome
from schemas.events import AnyOutcome
from tests.actors.test_ended_episodes import NAMES, recorded


@pytest.mark.parametrize("name", ["../x", "a b", ">", "", "a.b", "é", "x" * 5000])
async def test_a_name_that_no_episode_can_have_is_no_episode(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="has no episode"):
        await (await recorded(tmp_path)).record(name)


async def test_a_broker_that_is_away_is_not_an_episode_that_is_not_there(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    assert source.bus is not None

    async def away(*_: Any) -> Any:
        raise BusError("away")

    source.bus.read_key = away  # type: ignore[method-assign]
    with pytest.raises(BusError, match="away"):
        await source.record(NAMES[0])


async def test_an_episode_that_is_archived_and_purged_while_it_is_read_is_whole(tmp_path: Path) -> None:
    source = await recorded(tmp_path)
    bus = source.bus
    assert bus is not None
    read_key = bus.read_key

    async def purged_meanwhile(stream: str, *key: str) -> Any:
        found = await read_key(stream, *key)
        if stream != "trace":
            return found
        outcome = (await read_key("outcomes", NAMES[0]))[0]
        (tmp_path / "archive").mkdir()
        facts = [(each.sequence, each.event) for each in found if each.event is not None]
        line = encode_episode(outcome.sequence, cast("AnyOutcome", outcome.event), facts)
        (tmp_path / "archive" / EPISODES).write_bytes(line + b"\n")
        return found[:1]

    bus.read_key = purged_meanwhile  # type: ignore[method-assign]
    record = await source.record(NAMES[0])
    assert record.finished is not None and record.outcome is not None


async def test_an_outcome_is_told_after_every_fact_before_it(tmp_path: Path) -> None:
    """The end of an episode comes while it is read: what is told as ended must be told in full."""
    source = await recorded(tmp_path)
    bus = source.bus
    assert bus is not None
    read_key, asked = bus.read_key, list[str]()

    async def growing(stream: str, *key: str) -> Any:
        found = await read_key(stream, *key)
        asked.append(stream)
        return found[:-1] if len(asked) == 1 else found

    bus.read_key = growing  # type: ignore[method-assign]
    record = await source.record(NAMES[0])
    assert record.outcome is None or record.finished is not None


@pytest.mark.parametrize("name", ["../other", "a/../other", "..", "/etc", ""])
async def test_a_run_is_not_looked_for_outside_its_folder(tmp_path: Path, name: str) -> None:
    content = (await recorded(tmp_path)).content
    for folder in (tmp_path / "other", tmp_path / "runs" / "a"):
        folder.mkdir(parents=True)
        write_run_file(folder, content)
    with pytest.raises(ConfigError, match="cannot name a run"):
        choose_run(Workspace(tmp_path / "runs"), name)


async def archived(folder: Path, *, with_store: bool) -> RunSource:
    """A run of two archived episodes."""
    source = await recorded(folder)
    assert source.bus is not None
    (folder / "archive").mkdir()
    for name in NAMES:
        (outcome,) = await source.bus.read_key("outcomes", name)
        facts = [(each.sequence, each.event) for each in await source.bus.read_key("trace", name) if each.event is not None]
        event = cast("AnyOutcome", outcome.event)
        with (folder / "archive" / EPISODES).open("ab") as file:
            file.write(encode_episode(outcome.sequence, event, facts) + b"\n")
        with (folder / "archive" / OUTCOMES).open("ab") as file:
            file.write(msgspec.json.encode(ArchivedOutcome(sequence=outcome.sequence, outcome=event)) + b"\n")
    return source if with_store else RunSource(source.content, folder, None)


def change(path: Path, old: bytes, new: bytes) -> None:
    """Change the first place of some bytes."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


async def test_without_the_store_a_damaged_line_is_left_out_and_said(tmp_path: Path) -> None:
    source = await archived(tmp_path, with_store=False)
    change(tmp_path / "archive" / EPISODES, b'"facts":[{', b'"facts":[[')
    assert list((await source.rows()).rows) == [NAMES[1]]
    assert len(source.problems) == 1 and NAMES[0] in source.problems[0]
    with pytest.raises(EpisodeLineError):
        await source.record(NAMES[0])


async def test_a_damaged_name_hides_no_other_episode(tmp_path: Path) -> None:
    source = await archived(tmp_path, with_store=False)
    change(tmp_path / "archive" / EPISODES, b'{"episode":"t', b'{"episode":"\xff')
    assert (await source.record(NAMES[1])).finished is not None
    assert list((await source.rows()).rows) == [NAMES[1]]
    assert "name no episode" in source.problems[0]


async def test_a_damaged_outcome_is_named_with_its_line(tmp_path: Path) -> None:
    source = await archived(tmp_path, with_store=True)
    change(tmp_path / "archive" / OUTCOMES, b'{"sequence":2', b'{"sequence"x2')
    assert source.bus is not None
    await source.bus.purge("outcomes", up_to_sequence=2)
    with pytest.raises(ArchiveError, match="line 2 cannot be read"):
        await source.rows()
    with pytest.raises(ArchiveError, match="line 2 cannot be read"):
        async with follow(source.bus, tmp_path):
            pass


@pytest.mark.parametrize(("old", "new"), [(b'"sequences":[', b'"sequences":x'), (b'"tokens_generated"', b'"tokens_generatex"')])
async def test_a_damaged_line_is_named_where_its_facts_are_listed(tmp_path: Path, old: bytes, new: bytes) -> None:
    await archived(tmp_path, with_store=False)
    change(tmp_path / "archive" / EPISODES, old, new)
    with pytest.raises(EpisodeLineError):
        list(archived_messages(tmp_path / "archive", "r", "trace"))
