"""A line of the archive reads back as it was written, and no changed byte of it goes unnoticed."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runtime.episode_lines import EpisodeLineError, damaged, decode_episode, encode_episode
from schemas.archive import ArchivedEpisode
from schemas.events import AnyOutcome, DeadlineNeared, EpisodeFinished, EpisodeTaken, Event, TokensGenerated, ToolReturned
from schemas.records import Document, ToolResult
from tests.runtime.facts import call, dropped, requested
from tests.schemas.schema_samples import sample

EVIL = '},{"type":"tokens_generated","id":"no"}],"sequences":[1],"checksums":["0"]} \\" ü \x00'


def facts() -> list[tuple[int, Event]]:
    taken = EpisodeTaken(id="e1-taken-0", episode="e1", driver="d", attempt=0, request=requested("e1", 0))
    page = ToolResult(documents=[Document(url="u", text=EVIL), Document(url="u", text="x" * 50)])
    returned = ToolReturned(id="e1-0-3-returned", episode="e1", call="0", turn=0, result=page)
    events = [
        taken,
        sample(TokensGenerated),
        call("e1", 0),
        returned,
        DeadlineNeared(id=EVIL, episode="e1"),
        sample(EpisodeFinished),
    ]
    return [(7 * n + 1, event) for n, event in enumerate(events) if isinstance(event, Event)]


LINE = encode_episode(9, dropped("e1", EVIL), facts())
SHORT = encode_episode(9, dropped("e1"), facts()[2:3])
EMPTY = encode_episode(9, dropped("e1"), [])


def test_a_line_reads_back_as_it_was_written() -> None:
    read = decode_episode(LINE)
    assert read.sequences == [1, 8, 15, 22, 29, 36]
    assert (read.episode, read.sequence, read.outcome, read.facts) == (
        "e1",
        9,
        dropped("e1", EVIL),
        [fact for _, fact in facts()],
    )
    assert len(read.checksums) == 7
    assert msgspec.json.decode(LINE, type=ArchivedEpisode) == read
    assert [damaged(line) for line in (LINE, LINE + b"\n", SHORT, EMPTY)] == [[], [], [], []]


def spans(line: bytes) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Where each fact and the outcome stand."""

    class Parts(msgspec.Struct):
        outcome: msgspec.Raw
        facts: list[msgspec.Raw]

    parts = msgspec.json.decode(line, type=Parts)
    places, at = list[tuple[int, int]](), line.index(b',"facts":[')
    for fact in parts.facts:
        begin = line.index(bytes(fact), at)
        at = begin + len(bytes(fact))
        places.append((begin, at))
    begin = line.index(bytes(parts.outcome))
    return places, (begin, begin + len(bytes(parts.outcome)))


def with_byte(line: bytes, at: int, value: int) -> bytes:
    return line[:at] + bytes([value]) + line[at + 1 :]


@settings(max_examples=800, deadline=None)
@given(st.sampled_from([LINE, SHORT]), st.data())
def test_a_changed_byte_of_a_fact_or_the_outcome_is_named_or_refused(line: bytes, data: st.DataObject) -> None:
    places, outcome = spans(line)
    number = data.draw(st.integers(0, len(places)))
    begin, end = [*places, outcome][number]
    at = data.draw(st.integers(begin, end - 1))
    changed = with_byte(line, at, data.draw(st.integers(0, 255).filter(lambda value: value != line[at])))
    try:
        found = damaged(changed)
    except EpisodeLineError:
        return
    name = "the outcome" if number == len(places) else f"fact {number}"
    assert any(each.startswith(name) for each in found), found
    # Its neighbour is suspected too only where the change is in what tells the two apart.
    assert len(found) == 1 or at == end - 1 or at < begin + len('{"type":"'), found


@pytest.mark.parametrize("line", [LINE, SHORT, EMPTY], ids=["long", "short", "empty"])
def test_no_changed_byte_goes_unnoticed(line: bytes) -> None:
    """Every byte, changed in its lowest bit and in the one that makes a quote of another mark."""
    read = decode_episode(line)
    for at in range(len(line)):
        for value in {line[at] ^ 1, line[at] ^ 0x20, ord('"'), ord(" "), ord("0")} - {line[at]}:
            changed = with_byte(line, at, value)
            try:
                found = damaged(changed)
                assert found or decode_episode(changed).facts == read.facts
            except EpisodeLineError:
                continue
            assert found or _only_a_number_differs(read, decode_episode(changed)), (at, line[max(0, at - 20) : at + 20])


def _only_a_number_differs(one: ArchivedEpisode, other: ArchivedEpisode) -> bool:
    return msgspec.structs.replace(other, sequence=one.sequence, sequences=one.sequences) == one


def test_a_fact_that_is_no_json_any_more_is_named_and_its_neighbours_where_they_run_together() -> None:
    places, _ = spans(LINE)
    begin, end = places[2]
    torn = LINE[: begin + 40] + b'"}}]' + LINE[begin + 44 :]
    assert damaged(torn) == ["fact 2 (tool_requested e1-call-0)"]
    gone = damaged(LINE[:begin] + b"\0" * (end - begin) + LINE[end:])
    assert [each.split(" (")[0] for each in gone] == ["fact 1", "fact 2", "fact 3"]
    assert damaged(with_byte(LINE, end, 0)) == ["fact 2 (tool_requested e1-call-0)", "fact 3"]
    with pytest.raises(EpisodeLineError, match=r"fact 2 \(tool_requested e1-call-0\)"):
        decode_episode(torn)


def test_lines_without_checksums_are_read_and_have_none_to_damage() -> None:
    class Older(msgspec.Struct):
        episode: str
        sequence: int
        outcome: AnyOutcome
        facts: list[Event]

    older = msgspec.json.encode(Older("e1", 9, dropped("e1"), [fact for _, fact in facts()]))
    assert damaged(older) == []
    assert (decode_episode(older).sequences, len(decode_episode(older).facts)) == ([], 6)
    with pytest.raises(EpisodeLineError):
        damaged(older[:-30])


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 40, b'{"episode":"e', LINE[:-9], b"[" * 100_000])
def test_what_is_no_line_is_refused_by_name(data: bytes) -> None:
    for read in (damaged, decode_episode):
        with pytest.raises(EpisodeLineError):
            read(data)
