"""What every adapter of the bus keeps."""

import asyncio
import os
from contextlib import aclosing

import pytest

from actors.runtime.bus import Delivery, Incoming, Scope, Stored
from asearch.errors import (
    BlobMissingError,
    BusError,
    ConflictError,
    NoResponderError,
    RequestTimeoutError,
    StreamFullError,
)
from schemas import commands, events, topology
from schemas.records import BlobRef
from tests.runtime.conftest import ACK_WAIT_S, Harness
from tests.runtime.facts import call, dropped, ended, requested, until


async def collect(stream: object, n: int) -> list[Stored]:
    found: list[Stored] = []
    async with asyncio.timeout(10), aclosing(stream) as messages:
        async for message in messages:
            found.append(message)
            if len(found) == n:
                break
    return found


async def test_append_counts_up_and_reads_back_in_order(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    assert await bus.last_sequence("trace") == 0
    sequences = [await bus.append(call("e1", n), "e1") for n in range(5)]
    assert sequences == [1, 2, 3, 4, 5]
    found = [message async for message in bus.read("trace", follow=False)]
    assert [message.event for message in found] == [call("e1", n) for n in range(5)]
    assert [message.sequence for message in found] == sequences
    assert found[0].key == ("e1",)
    assert found[0].at_ns > 0
    assert [message async for message in bus.read("trace", follow=False, start_sequence=4)] == found[3:]
    assert [message async for message in bus.read("plan", follow=False)] == []


async def test_the_same_id_is_stored_once(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    assert await bus.append(call("e1", 0), "e1") == 1
    assert await bus.append(call("e1", 0), "e1") == 1
    assert await bus.last_sequence("trace") == 1


async def test_conditional_append_binds_the_key_across_event_types(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    first = await bus.append(dropped("e1"), "e1", expected=0)
    other = events.EpisodeDead(**{**_fields(dropped("e1")), "id": "other", "reason": "poison"})
    with pytest.raises(ConflictError):
        await bus.append(other, "e1", expected=0)
    assert await bus.append(dropped("e2"), "e2", expected=0) == first + 1
    assert await bus.append(other, "e1", expected=first) == first + 2


def _fields(event: events.EpisodeDropped) -> dict[str, object]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


async def test_repeated_conditional_append_is_success_only_with_the_same_bytes(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    assert await bus.append(call("e1", 0), "e1", expected=0) == 1
    assert await bus.append(call("e1", 1), "e1", expected=1) == 2
    assert await bus.append(call("e1", 0), "e1", expected=0) == 1
    with pytest.raises(ConflictError):
        await bus.append(call("e1", 0, size=9), "e1", expected=0)
    with pytest.raises(ConflictError):
        await bus.append(call("e1", 0), "e1", expected=2)


async def test_conditional_append_on_the_whole_stream(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    assert await bus.append(ended(0), "a", expected=0, scope=Scope.STREAM) == 1
    with pytest.raises(ConflictError):
        await bus.append(ended(1), "b", expected=0, scope=Scope.STREAM)
    assert await bus.append(ended(1), "b", expected=1, scope=Scope.STREAM) == 2
    assert await bus.append(ended(1), "b", expected=1, scope=Scope.STREAM) == 2


async def test_of_two_racing_writers_one_wins_each_step(harness: Harness) -> None:
    one, two = await harness.bus(), await harness.bus()
    await one.ensure_topology()

    async def write(bus: object, name: str) -> int:
        wins, last = 0, 0
        while last < 40:
            event = call("e1", 0).__class__(**{**_call_fields(last), "id": f"{name}-{last}"})
            try:
                last = await bus.append(event, "e1", expected=last)
                wins += 1
            except ConflictError:
                last = (await bus.read_key("trace", "e1"))[-1].sequence
        return wins

    wins = await asyncio.gather(write(one, "one"), write(two, "two"))
    stored = await one.read_key("trace", "e1")
    assert sum(wins) == len(stored) == stored[-1].sequence


def _call_fields(n: int) -> dict[str, object]:
    event = call("e1", n)
    return {name: getattr(event, name) for name in event.__struct_fields__}


async def test_bad_appends_are_named(harness: Harness) -> None:
    bus = await harness.bus()
    with pytest.raises(BusError, match="trace"):
        await bus.append(call("e1", 0), "e1", timeout_s=0.5)
    await bus.ensure_topology()
    with pytest.raises(BusError, match="letters"):
        await bus.append(call("e1", 0), "e.1")
    with pytest.raises(BusError, match="1 tokens"):
        await bus.append(call("e1", 0), "e1", "more")
    with pytest.raises(BusError, match="unusable id"):
        await bus.append(events.RunEnded(id="a\r\nb", run="r", reason=""), "r")


async def test_a_full_stream_refuses_and_takes_again_after_a_purge(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology(max_bytes={"trace": 20_000})
    with pytest.raises(StreamFullError):
        for n in range(100):
            await bus.append(call("e1", n, size=1000), "e1")
    info = await bus.stream_info("trace")
    assert 10 < info.n_messages < 20
    assert info.n_bytes <= info.max_bytes == 20_000
    assert await bus.purge("trace", up_to_sequence=5) == 5
    assert await bus.append(call("e2", 0), "e2") == info.last_sequence + 1
    assert (await bus.stream_info("trace")).first_sequence == 6


async def test_reading_follows_and_filters(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    reader = asyncio.create_task(collect(bus.read("outcomes", events=(events.EpisodeDropped,)), 20))
    keyed = asyncio.create_task(collect(bus.read("outcomes", key=("e3",)), 1))
    for n in range(20):
        await bus.append(dropped(f"e{n}"), f"e{n}")
        dead = events.EpisodeDead(**{**_fields(dropped(f"d{n}")), "reason": "poison"})
        await bus.append(dead, f"d{n}")
    found = await reader
    assert [message.key for message in found] == [(f"e{n}",) for n in range(20)]
    assert [message.sequence for message in found] == list(range(1, 41, 2))
    assert [message.event for message in await keyed] == [dropped("e3")]
    with pytest.raises(BusError, match="not in stream"):
        await collect(bus.read("outcomes", events=(events.RunEnded,)), 1)


async def test_reading_by_subject_filters(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    for n in range(3):
        await bus.append(call(f"e{n}", n), f"e{n}")
    await bus.append(events.DeadlineNeared(id="near", episode="e1"), "e1")

    async def found(*subjects: str) -> list[int]:
        return [each.sequence async for each in bus.read("trace", subjects=subjects, follow=False)]

    head = f"asearch.{bus.run}.trace"
    assert await found(f"{head}.tool.requested.>") == [1, 2, 3]
    assert await found(f"{head}.*.*.e1") == [2, 4]
    assert await found(f"{head}.tool.requested.e0", f"{head}.deadline.*.e1") == [1, 4]
    assert await found(f"{head}.tool.*.e9") == []


async def test_a_time_is_found_in_a_stream(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    assert await bus.sequence_at("trace", 0) == 1
    for n in range(4):
        await bus.append(call("e1", n), "e1")
        await asyncio.sleep(0.005)
    at = [each.at_ns for each in await bus.read_key("trace")]
    assert [await bus.sequence_at("trace", each) for each in at] == [1, 2, 3, 4]
    assert [await bus.sequence_at("trace", each + 1) for each in at] == [2, 3, 4, 5]
    assert await bus.sequence_at("trace", 0) == 1
    await bus.purge("trace", up_to_sequence=2)
    assert await bus.sequence_at("trace", at[0]) == 3


async def test_a_long_read_is_complete_while_others_write(harness: Harness) -> None:
    bus, writer = await harness.bus(), await harness.bus()
    await bus.ensure_topology()
    reader = asyncio.create_task(collect(bus.read("trace"), 3000))

    async def write(key: str) -> None:
        for n in range(300):
            await writer.append(call(key, n), key)

    await asyncio.gather(*(write(f"w{k}") for k in range(10)))
    found = await reader
    assert [message.sequence for message in found] == list(range(1, 3001))
    assert {message.event.id for message in found if message.event} == {f"w{k}-call-{n}" for k in range(10) for n in range(300)}


async def test_bounded_read_ends_when_the_rest_was_purged(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    for n in range(600):
        await bus.append(call("e1", n), "e1")
    found = 0
    async with asyncio.timeout(10):
        async for _ in bus.read("trace", follow=False):
            found += 1
            if found == 1:
                await bus.purge("trace", up_to_sequence=600)
    assert 1 <= found <= 600


async def test_malformed_bytes_are_handed_out_with_the_reason(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    subject = topology.subject(harness.run, events.ToolRequested, "e1")
    await harness.inject("trace", subject, b"\x00 no event")
    await bus.append(call("e1", 1), "e1")
    found = [message async for message in bus.read("trace", follow=False)]
    assert found[0].event is None
    assert found[0].data == b"\x00 no event"
    assert "not an event" in (found[0].malformed or "")
    assert found[1].event == call("e1", 1)
    assert found[1].malformed is None
    seen: list[Stored] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.stored)
        await delivery.ack()

    await bus.consume("tool", handle, concurrency=1)
    await until(lambda: len(seen) == 2)
    assert [message.malformed is None for message in seen] == [False, True]
    assert bus.gauges()["n_malformed"] >= 2


async def test_facts_of_a_key_and_the_last_of_a_type(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    assert await bus.read_key("trace", "e1") == []
    assert await bus.get_last(events.ToolRequested, "e1") is None
    for n in range(400):
        await bus.append(call(f"e{n % 2}", n), f"e{n % 2}")
    found = await bus.read_key("trace", "e1")
    assert [message.event for message in found] == [call("e1", n) for n in range(1, 400, 2)]
    last = await bus.get_last(events.ToolRequested, "e1")
    assert last is not None
    assert (last.sequence, last.event) == (400, call("e1", 399))
    assert found[-1] == last


async def test_purge_by_key_leaves_the_others(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    for n in range(10):
        await bus.append(call(f"e{n % 2}", n), f"e{n % 2}")
    assert await bus.purge("trace", key=("e1",)) == 5
    assert await bus.read_key("trace", "e1") == []
    assert len(await bus.read_key("trace", "e0")) == 5
    assert (await bus.stream_info("trace")).last_sequence == 10
    assert len([message async for message in bus.read("trace", follow=False)]) == 5


async def test_traces_travel_with_the_message(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    await bus.append(call("e1", 0), "e1", traceparent="00-aa-bb-01")
    assert [message.traceparent async for message in bus.read("trace", follow=False)] == ["00-aa-bb-01"]
    assert [message.traceparent for message in await bus.read_key("trace", "e1")] == ["00-aa-bb-01"]


# --- queues -----------------------------------------------------------------------------------------------------------


async def test_every_request_is_worked_off_once_by_some_worker(harness: Harness) -> None:
    buses = [await harness.bus(), await harness.bus(), await harness.bus()]
    await buses[0].ensure_topology()
    seen: list[list[str]] = [[], [], []]

    def handler(index: int) -> object:
        async def handle(delivery: Delivery) -> None:
            assert delivery.stored.event is not None
            await asyncio.sleep(0.002)
            seen[index].append(delivery.stored.event.id)
            await delivery.ack()

        return handle

    queues = [await bus.consume("tool", handler(index), concurrency=4) for index, bus in enumerate(buses)]
    for n in range(150):
        await buses[0].append(call(f"e{n}", n), f"e{n}")
    await until(lambda: sum(map(len, seen)) >= 150)
    for queue in queues:
        await queue.drain(5.0)
        await queue.wait()
    await asyncio.sleep(0.05)
    assert sorted(each for held in seen for each in held) == sorted(f"e{n}-call-{n}" for n in range(150))
    assert all(len(each) > 10 for each in seen)
    info = await buses[0].consumer_info("tool")
    assert (info.n_pending, info.n_ack_pending) == (0, 0)


@pytest.mark.usefixtures("short_waits")
async def test_redelivery_after_the_wait_nak_and_failure(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    times: dict[str, list[tuple[int, float]]] = {"e0": [], "e1": [], "e2": [], "e3": []}
    clock = asyncio.get_running_loop().time

    async def handle(delivery: Delivery) -> None:
        (episode,) = delivery.stored.key
        times[episode].append((delivery.n_delivered, clock()))
        if delivery.n_delivered == 1 and episode == "e1":
            await delivery.nak(0.2)
        elif delivery.n_delivered == 1 and episode == "e2":
            raise RuntimeError("a handler that fails")
        elif delivery.n_delivered == 1 and episode == "e3":
            await delivery.nak()
        elif delivery.n_delivered > 1:
            await delivery.ack()

    await bus.consume("tool", handle, concurrency=8)
    for episode in times:
        await bus.append(call(episode, 0), episode)
    await until(lambda: all(len(each) == 2 for each in times.values()))
    await asyncio.sleep(ACK_WAIT_S + 0.3)
    assert all([n for n, _ in each] == [1, 2] for each in times.values())
    gaps = {episode: each[1][1] - each[0][1] for episode, each in times.items()}
    assert ACK_WAIT_S * 0.8 <= gaps["e0"] < ACK_WAIT_S + 2
    assert 0.15 <= gaps["e1"] < ACK_WAIT_S
    assert gaps["e2"] >= 0.8
    assert gaps["e3"] < 0.3


@pytest.mark.usefixtures("short_waits")
async def test_in_progress_holds_a_delivery_and_term_ends_it(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    seen: list[tuple[str, int]] = []

    async def handle(delivery: Delivery) -> None:
        (episode,) = delivery.stored.key
        seen.append((episode, delivery.n_delivered))
        if episode == "e1":
            await delivery.term()
            return
        for _ in range(6):
            await asyncio.sleep(ACK_WAIT_S / 3)
            await delivery.in_progress()
        await delivery.ack()

    await bus.consume("tool", handle, concurrency=4)
    await bus.append(call("e0", 0), "e0")
    await bus.append(call("e1", 0), "e1")
    await asyncio.sleep(ACK_WAIT_S * 3.2)
    assert sorted(seen) == [("e0", 1), ("e1", 1)]
    assert (await bus.consumer_info("tool")).n_ack_pending == 0


@pytest.mark.usefixtures("short_waits")
async def test_what_is_out_is_bounded_and_a_dead_worker_gives_up_its_share(harness: Harness) -> None:
    dead, live = await harness.bus("dead"), await harness.bus("live")
    await dead.ensure_topology()
    held: list[str] = []
    done: set[str] = set()

    async def hold(delivery: Delivery) -> None:
        held.append(delivery.stored.key[0])
        await asyncio.sleep(60)

    async def work(delivery: Delivery) -> None:
        done.add(delivery.stored.key[0])
        await delivery.ack()

    await dead.consume("tool", hold, concurrency=64)
    for n in range(20):
        await dead.append(call(f"e{n}", 0), f"e{n}")
    await until(lambda: len(held) >= 8)
    await asyncio.sleep(0.1)
    assert len(held) == 8
    await dead.close()
    await live.consume("tool", work, concurrency=4)
    await until(lambda: len(done) == 20)


async def test_drain_waits_for_handlers_and_takes_nothing_new(harness: Harness) -> None:
    bus, other = await harness.bus(), await harness.bus()
    await bus.ensure_topology()
    finished: list[str] = []

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.3)
        finished.append(delivery.stored.key[0])
        await delivery.ack()

    queue = await bus.consume("tool", handle, concurrency=2)
    await bus.append(call("e0", 0), "e0")
    await asyncio.sleep(0.1)
    await queue.drain(5.0)
    assert finished == ["e0"]
    await bus.append(call("e1", 0), "e1")
    await asyncio.sleep(0.1)
    info = await other.consumer_info("tool")
    assert (info.n_pending, info.n_ack_pending) == (1, 0)
    await bus.drain(5.0)
    with pytest.raises(BusError):
        await bus.append(call("e2", 0), "e2")


# --- blobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 300_000, topology.CHUNK_BYTES, 3 * topology.CHUNK_BYTES + 17])
async def test_blobs_come_back_and_are_stored_once(harness: Harness, size: int) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    data = os.urandom(size)
    ref = await bus.put_blob("e1", data)
    assert ref.size_bytes == size
    assert await bus.put_blob("e1", data) == ref
    assert (await bus.stream_info("blobs")).n_messages == ref.n_chunks == max(1, -(-size // topology.CHUNK_BYTES))
    assert await bus.get_blob(ref) == data
    assert await bus.purge("blobs", key=("e1",)) == ref.n_chunks
    with pytest.raises(BlobMissingError, match=ref.hash):
        await bus.get_blob(ref)


async def test_blob_with_other_bytes_is_refused(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    ref = await bus.put_blob("e1", b"good")
    lie = BlobRef(episode=ref.episode, hash=ref.hash, size_bytes=5, n_chunks=1)
    with pytest.raises(BlobMissingError, match="not those"):
        await bus.get_blob(lie)


# --- core -------------------------------------------------------------------------------------------------------------


async def test_core_messages_arrive_in_order_and_requests_are_answered(harness: Harness) -> None:
    bus, other = await harness.bus(), await harness.bus()
    seen: list[str] = []

    async def handle(incoming: Incoming) -> None:
        assert isinstance(incoming.message, commands.Abort)
        seen.append(incoming.message.request)
        await incoming.reply(commands.Received())

    await other.subscribe(commands.Abort, "e1", handle)
    await asyncio.sleep(0.05)
    for n in range(200):
        await bus.publish(commands.Abort(request=str(n)), key="e1")
    await until(lambda: len(seen) == 200)
    assert seen == [str(n) for n in range(200)]
    subject = bus.core_subject(commands.Abort, "e1")
    assert await bus.request(commands.Abort(request="a"), key="e1", timeout_s=2) == commands.Received()
    assert await bus.request(commands.Abort(request="a"), subject=subject, timeout_s=2) == commands.Received()
    with pytest.raises(NoResponderError, match="e2"):
        await bus.request(commands.Abort(request="a"), key="e2", timeout_s=30)
    with pytest.raises(BusError, match="not both"):
        await bus.publish(commands.Abort(request="a"), key="e1", subject=subject)


async def test_core_requests_time_out_and_bad_messages_are_counted(harness: Harness) -> None:
    bus = await harness.bus()
    seen: list[str] = []

    async def handle(incoming: Incoming) -> None:
        assert isinstance(incoming.message, commands.Abort)
        seen.append(incoming.subject.rpartition(".")[2])
        if incoming.message.request == "fail":
            raise RuntimeError("a handler that fails")

    subscription = await bus.subscribe(commands.Abort, ">", handle)
    await asyncio.sleep(0.05)
    await harness.send_core(bus.core_subject(commands.Abort, "e0"), b"rubbish")
    await bus.publish(commands.Abort(request="fail"), key="e1")
    with pytest.raises(RequestTimeoutError, match="e2"):
        await bus.request(commands.Abort(request="a"), key="e2", timeout_s=0.2)
    assert seen == ["e1", "e2"]
    assert bus.gauges()["n_malformed"] == 1
    await subscription.drain(1.0)
    with pytest.raises(NoResponderError):
        await bus.request(commands.Abort(request="a"), key="e2", timeout_s=30)


async def test_a_slow_handler_loses_messages_and_says_so(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.runtime.core.MAX_WAITING", 10)
    bus, other = await harness.bus(), await harness.bus()
    gate = asyncio.Event()
    seen: list[str] = []

    async def handle(incoming: Incoming) -> None:
        await gate.wait()
        seen.append(incoming.subject)

    await bus.subscribe(commands.Abort, "e1", handle)
    await asyncio.sleep(0.05)
    for _ in range(50):
        await other.publish(commands.Abort(request="a"), key="e1")
    await until(lambda: bus.gauges()["n_slow_consumer"] >= 39)
    gate.set()
    await until(lambda: len(seen) >= 10)
    assert len(seen) <= 12


async def test_runs_do_not_see_each_other(harness: Harness) -> None:
    bus = await harness.bus()
    await bus.ensure_topology()
    await bus.append(call("e1", 0), "e1")
    harness.run = f"{harness.run}x"
    other = await harness.bus()
    with pytest.raises(BusError, match="no stream"):
        await other.last_sequence("trace")
    await other.ensure_topology()
    await other.ensure_topology()
    assert await other.last_sequence("trace") == 0


async def test_a_deleted_run_begins_anew(harness: Harness) -> None:
    bus = await harness.bus("scheduler")
    await bus.delete_topology()
    await bus.ensure_topology()
    await bus.append(requested("e-0", 0), "e-0")
    await bus.delete_topology()
    await bus.ensure_topology()
    assert await bus.last_sequence("plan") == 0
    assert await bus.append(requested("e-0", 0), "e-0", expected=0) == 1
