"""Appends and burials beside messages that nobody can read, on both adapters."""

import asyncio

import pytest

from actors.cli import dead_letters
from actors.runtime.appends import append_past_malformed, last_fact
from actors.runtime.bus import Scope, Stored
from actors.runtime.dead_letters import MAX_KEPT_BYTES, bury
from actors.runtime.outcomes import append_outcome
from asearch.errors import BlobMissingError, ConflictError
from schemas import topology
from schemas.events import EpisodeDropped, EventRefused, PolicyPublished, RunEnded
from schemas.records import BlobRef
from tests.runtime.conftest import Harness
from tests.runtime.facts import dropped, ended

NOISE = b"\xc1 no event"


def outcome_subject(harness: Harness, episode: str) -> str:
    return topology.subject(harness.run, EpisodeDropped, episode)


async def read_all(bus, stream: str) -> list[Stored]:  # type: ignore[no-untyped-def]
    return [stored async for stored in bus.read(stream, follow=False)]


async def test_a_malformed_message_is_no_outcome(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    for _ in range(2):
        await harness.inject("outcomes", outcome_subject(harness, "e1"), NOISE)
    assert await append_outcome(bus, dropped("e1"))
    assert not await append_outcome(bus, dropped("e1", "late"))
    found = [each.event for each in await bus.read_key("outcomes", "e1")]
    assert found == [None, None, dropped("e1")]


async def test_of_racing_outcomes_one_is_stored_whatever_noise_comes_between(harness: Harness) -> None:
    buses = [await harness.bus() for _ in range(4)]
    await buses[0].ensure_topology()
    for n in range(10):
        episode = f"e{n}"
        await harness.inject("outcomes", outcome_subject(harness, episode), NOISE)
        noise = harness.inject("outcomes", outcome_subject(harness, episode), NOISE)
        writers = (append_outcome(bus, dropped(episode, f"r{w}")) for w, bus in enumerate(buses))
        done = await asyncio.gather(noise, *writers)
        assert sum(map(bool, done)) == 1
        outcomes = [each.event for each in await buses[0].read_key("outcomes", episode) if each.event is not None]
        assert len(outcomes) == 1


async def test_a_writer_of_a_whole_stream_passes_over_noise_and_is_refused_by_a_fact(harness: Harness) -> None:
    bus = await harness.bus("scheduler")
    await bus.ensure_topology()
    last = await bus.append(ended(0), "r", expected=0, scope=Scope.STREAM)
    for _ in range(3):
        await harness.inject("plan", topology.subject(harness.run, RunEnded, "r"), NOISE)
    last = await append_past_malformed(bus, ended(1), "r", expected=last, scope=Scope.STREAM)
    assert last == 5
    await harness.inject("plan", topology.subject(harness.run, RunEnded, "r"), NOISE)
    await bus.append(ended(2), "r")
    with pytest.raises(ConflictError):
        await append_past_malformed(bus, ended(3), "r", expected=last, scope=Scope.STREAM)
    assert [each.event for each in await read_all(bus, "plan") if each.event] == [ended(0), ended(1), ended(2)]


async def test_an_append_goes_on_for_as_long_as_only_noise_comes_in_between(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, n_noise = await harness.bus("scheduler"), 40
    await bus.ensure_topology()
    append = bus.append
    subjects = [topology.subject(harness.run, RunEnded, "r"), topology.subject(harness.run, RunEnded, "r")]
    if harness.kind == "jetstream":
        # A subject that no fact has; the broker in memory takes none.
        subjects[1] = subjects[1].rpartition(".")[0]

    async def preceded(*args, **options):  # type: ignore[no-untyped-def]
        if await bus.last_sequence("plan") < n_noise:
            await harness.inject("plan", subjects[await bus.last_sequence("plan") % 2], NOISE)
        return await append(*args, **options)

    monkeypatch.setattr(bus, "append", preceded)
    assert await append_past_malformed(bus, ended(1), "r", expected=0, scope=Scope.STREAM) == n_noise + 1


async def test_noise_under_another_model_does_not_concern_a_journal(harness: Harness) -> None:
    bus = await harness.bus("trainer")
    await bus.ensure_topology()
    await harness.inject("policy", topology.subject(harness.run, PolicyPublished, "other"), NOISE)
    await harness.inject("policy", topology.subject(harness.run, PolicyPublished, "policy"), NOISE)
    assert [each.sequence for each in await bus.read_key("policy", "policy")] == [2]


async def test_a_message_is_buried_once_whoever_refuses_it(harness: Harness) -> None:
    bus, other = await harness.bus("recorder"), await harness.bus("tool")
    await bus.ensure_topology()
    await harness.inject("trace", topology.subject(harness.run, EventRefused, "t", "1").replace("dead", "trace"), NOISE)
    (stored,) = await read_all(bus, "trace")
    burials = [bury(bus, stored, "recorder", "why"), bury(other, stored, "tool", "because"), bury(bus, stored, "recorder", "why")]
    assert await asyncio.gather(*burials) == [True, True, True]
    (kept,) = [each.event for each in await read_all(bus, "dead")]
    assert isinstance(kept, EventRefused)
    assert (kept.stream, kept.sequence, kept.data, kept.size_bytes) == ("trace", 1, NOISE, len(NOISE))


async def test_the_newest_fact_is_found_behind_noise(harness: Harness) -> None:
    bus = await harness.bus("scheduler")
    await bus.ensure_topology()
    assert await last_fact(bus, RunEnded, "r") is None
    await bus.append(ended(1), "r")
    await bus.append(ended(2), "r")
    await harness.inject("plan", topology.subject(harness.run, RunEnded, "r"), NOISE)
    assert await last_fact(bus, RunEnded, "r") == ended(2)
    await harness.inject("plan", topology.subject(harness.run, RunEnded, "s"), NOISE)
    assert await last_fact(bus, RunEnded, "s") is None


@pytest.mark.parametrize(("size_bytes", "n_chunks"), [(1 << 40, 1 << 20), (1 << 20, 1 << 30), (10, 0)])
async def test_a_reference_that_cannot_be_right_is_refused_unread(harness: Harness, size_bytes: int, n_chunks: int) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    with pytest.raises(BlobMissingError, match="cannot hold"):
        async with asyncio.timeout(2.0):
            await bus.get_blob(BlobRef(episode="e", hash="h", size_bytes=size_bytes, n_chunks=n_chunks))


async def test_messages_that_had_one_sequence_one_after_the_other_are_all_kept(harness: Harness) -> None:
    bus, other = await harness.bus("recorder"), await harness.bus("tool")
    await bus.ensure_topology()
    # What a broker that has lost the tail of TRACE twice gives out under sequence 7.
    lives = [Stored("trace", "s", 7, data, None, "noise") for data in (b"\xc1 first", b"\xc1 second", b"\xc1 third")]
    for stored in lives:
        both = bury(bus, stored, "recorder", "why"), bury(other, stored, "tool", "why")
        assert await asyncio.gather(*both) == [True, True]
    kept = [each.event for each in await read_all(bus, "dead")]
    assert [each.data for each in kept if isinstance(each, EventRefused)] == [stored.data for stored in lives]
    found = await dead_letters.letters(bus)
    assert len({letter.id for letter in found}) == 3 and found[0].id == "dead-trace-7"


async def test_of_the_largest_message_the_beginning_is_kept(harness: Harness) -> None:
    bus = await harness.bus("recorder")
    await bus.ensure_topology()
    stored = Stored("trace", "s", 1, b"x" * topology.MAX_PAYLOAD_BYTES, None, "large")
    assert await bury(bus, stored, "recorder", "large")
    (kept,) = [each.event for each in await read_all(bus, "dead")]
    assert isinstance(kept, EventRefused)
    assert (len(kept.data), kept.size_bytes) == (MAX_KEPT_BYTES, topology.MAX_PAYLOAD_BYTES)


async def test_a_full_dead_stream_is_told_and_not_raised(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    bus = await harness.bus("recorder")
    await bus.ensure_topology({"dead": 5000})
    kept = [await bury(bus, Stored("trace", "s", n, b"x" * 1000, None, "noise"), "recorder", "noise") for n in range(1, 9)]
    assert kept[0] and not kept[-1]
    assert "DEAD does not take it" in caplog.text
