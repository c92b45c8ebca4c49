"""A machine that uses the bus as actors do, beside a model of what the port promises. Adapters fill in `connect`."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from actors.runtime.bus import Bus, Delivery, Scope, Stored, Subscription
from asearch.errors import ConflictError
from schemas.events import Event, ToolRequested
from tests.runtime.facts import call, ended

MAX_OUT = 8
KEYS = ("e0", "e1", "e2")
T = TypeVar("T")
keys = st.sampled_from(KEYS)


@dataclass
class Appended:
    """An append that succeeded: what was sent, and where it went."""

    event: Event
    key: str
    expected: int | None
    sequence: int


@dataclass
class Work:
    """What a queue owes for one fact."""

    n_delivered: int = 0
    due: bool = True
    """A delivery is to be expected without any waiting."""
    touched_s: float = 0.0
    acked: bool = False
    perhaps: bool = False
    """An earlier delivery was acknowledged than the last: that may count or not."""
    settled_s: float = 0.0


@dataclass
class Held:
    """A delivery whose handler waits for what the machine decides."""

    delivery: Delivery
    decided: "asyncio.Future[str]"


@dataclass
class Reading:
    """A reader and how far it has come."""

    messages: AsyncGenerator[Stored, None]
    position: int


@dataclass
class Stage:
    """What the model knows of TRACE."""

    stored: dict[int, Appended] = field(default_factory=dict)
    last: int = 0
    history: list[Appended] = field(default_factory=list)

    def last_of(self, key: str) -> int:
        """The last sequence under a key that was not purged."""
        return max((sequence for sequence, each in self.stored.items() if each.key == key), default=0)


class BusMachine(RuleBasedStateMachine):
    """Appends, repeats, purges, readers and one queue with a worker that may die."""

    ack_wait_s: ClassVar[float]
    exact: ClassVar[bool]
    """Whether time stands still between rules, so that nothing is under way when one begins."""

    def open_loop(self) -> asyncio.Runner:
        """The loop everything runs in."""
        raise NotImplementedError

    async def connect(self) -> Bus:
        """A further connection to the same run."""
        raise NotImplementedError

    # --- life ---

    @initialize()
    def begin(self) -> None:
        self.runner = self.open_loop()
        self.model, self.work = Stage(), dict[int, Work]()
        self.held: list[Held] = []
        self.readers: list[Reading] = []
        self.plan = 0
        self.numbers = itertools.count()
        self.auto_ack = False
        self.purging = set[int]()
        self.wrong: list[str] = []
        self.do(self._begin())

    async def _begin(self) -> None:
        self.bus = await self.connect()
        await self.bus.ensure_topology()
        await self._employ()

    async def _employ(self) -> None:
        self.worker = await self.connect()
        self.queue: Subscription = await self.worker.consume("tool", self._handle, concurrency=2 * MAX_OUT)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run some work, let what follows from it happen, and look at what was found wrong on the way."""

        async def settle() -> T:
            async with asyncio.timeout(30.0):
                result = await work
                await asyncio.sleep(0.02)
                return result

        result = self.runner.run(settle())
        assert not self.wrong, self.wrong
        return result

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.do(self._drain())
        finally:
            self.runner.run(self._close())
            self.runner.close()

    async def _drain(self) -> None:
        """Whatever was not acknowledged is delivered in the end, and then nothing is left."""
        self.auto_ack = True
        for held in self.held:
            held.decided.set_result("ack")
        async with asyncio.timeout(20.0 + 20.0 * self.exact):
            while True:
                info = await self.bus.consumer_info("tool")
                if info.n_pending == info.n_ack_pending == 0:
                    break
                await asyncio.sleep(0.05)
        lost = [sequence for sequence in self.model.stored if not self.work[sequence].acked and not self.work[sequence].perhaps]
        assert lost == [], "facts that no worker ever got"

    async def _close(self) -> None:
        for reading in self.readers:
            await reading.messages.aclose()
        await self.worker.close()
        await self.bus.delete_topology()
        await self.bus.close()

    # --- appends ---

    def _next(self, key: str) -> ToolRequested:
        return call(key, next(self.numbers))

    def _note(self, event: Event, key: str, expected: int | None, sequence: int) -> None:
        assert sequence == self.model.last + 1
        self.model.last = sequence
        appended = Appended(event, key, expected, sequence)
        self.model.stored[sequence] = appended
        self.model.history.append(appended)
        self.work.setdefault(sequence, Work())

    @rule(key=keys, conditional=st.booleans())
    def append(self, key: str, conditional: bool) -> None:
        expected = self.model.last_of(key) if conditional else None
        event = self._next(key)
        # The delivery may come before the append returns.
        self.work.setdefault(self.model.last + 1, Work())
        self._note(event, key, expected, self.do(self.bus.append(event, key, expected=expected)))

    @rule(key=keys, off=st.sampled_from([-1, 1, 5]))
    def append_behind_somebody(self, key: str, off: int) -> None:
        expected = self.model.last_of(key) + off
        if expected >= 0:
            self.do(self._refused(self._next(key), key, expected))

    async def _refused(self, event: Event, key: str, expected: int) -> None:
        try:
            await self.bus.append(event, key, expected=expected)
        except ConflictError:
            return
        raise AssertionError(f"an append after {expected} of {key} was not refused")

    @precondition(lambda self: bool(self.model.history))
    @rule(data=st.data(), changed=st.booleans())
    def append_again(self, data: Any, changed: bool) -> None:
        """A retry under the same id and condition: the first sequence, and nothing new; with other bytes it is refused."""
        first = data.draw(st.sampled_from(self.model.history))
        if first.sequence not in self.model.stored:
            return
        event = msgspec.structs.replace(first.event, argument="other") if changed else first.event
        if changed and first.expected is not None:
            self.do(self._refused(event, first.key, first.expected))
        else:
            assert self.do(self.bus.append(event, first.key, expected=first.expected)) == first.sequence
        assert self.do(self.bus.last_sequence("trace")) == self.model.last

    @rule(ahead=st.sampled_from([0, 0, 1]), behind=st.booleans())
    def append_to_the_plan(self, ahead: int, behind: bool) -> None:
        """The condition binds the whole stream, whatever the key."""
        expected = self.plan + ahead - (behind and self.plan > 0)
        event, key = ended(next(self.numbers)), f"k{ahead}"
        if expected == self.plan:
            self.plan = self.do(self.bus.append(event, key, expected=expected, scope=Scope.STREAM))
            assert self.plan == expected + 1
            return

        async def refused() -> None:
            try:
                await self.bus.append(event, key, expected=expected, scope=Scope.STREAM)
            except ConflictError:
                return
            raise AssertionError("two schedulers write the plan")

        self.do(refused())

    # --- purges and reads ---

    @rule(share=st.floats(0, 1), key=st.sampled_from([None, *KEYS]))
    def purge(self, share: float, key: str | None) -> None:
        up_to = int(self.model.last * share)
        doomed = [seq for seq, each in self.model.stored.items() if seq <= up_to and key in (None, each.key)]
        if up_to == 0:
            return
        # Their places in the queue are free from here on, before the purge has returned.
        self.purging = set(doomed)
        gone = self.do(self.bus.purge("trace", up_to_sequence=up_to, key=(key,) if key else ()))
        assert gone == len(doomed)
        for sequence in doomed:
            del self.model.stored[sequence]

    @rule(key=keys)
    def read_a_key(self, key: str) -> None:
        found = self.do(self.bus.read_key("trace", key))
        expected = [each for each in self.model.stored.values() if each.key == key]
        assert [(stored.sequence, stored.event) for stored in found] == [(each.sequence, each.event) for each in expected]

    @rule()
    def read_what_is_there(self) -> None:
        async def everything() -> list[tuple[int, Event | None]]:
            async with aclosing(self.bus.read("trace", follow=False)) as messages:
                return [(stored.sequence, stored.event) async for stored in messages]

        expected = [(sequence, each.event) for sequence, each in sorted(self.model.stored.items())]
        assert self.do(everything()) == expected

    @precondition(lambda self: len(self.readers) < 3)
    @rule(share=st.floats(0, 1))
    def follow(self, share: float) -> None:
        begin = int(self.model.last * share) + 1
        self.readers.append(Reading(self.bus.read("trace", start_sequence=begin), begin - 1))

    @precondition(lambda self: bool(self.readers))
    @rule(number=st.integers(0, 2), n=st.integers(1, 5))
    def read_on(self, number: int, n: int) -> None:
        """Nothing left out, nothing twice; what was purged after it was fetched may still come."""
        reading = self.readers[number % len(self.readers)]
        coming = sorted(sequence for sequence in self.model.stored if sequence > reading.position)
        while coming and n:
            stored = self.do(anext(reading.messages))
            assert reading.position < stored.sequence <= coming[0]
            assert stored.sequence == coming[0] or not self.exact
            assert stored.event == self.model.history[stored.sequence - 1].event
            reading.position = stored.sequence
            if stored.sequence == coming[0]:
                coming.pop(0)
                n -= 1

    # --- the queue ---

    async def _handle(self, delivery: Delivery) -> None:
        now_s, sequence = asyncio.get_running_loop().time(), delivery.stored.sequence
        work = self.work.setdefault(sequence, Work())
        if delivery.n_delivered <= work.n_delivered:
            self.wrong.append(f"delivery {delivery.n_delivered} of {sequence} after {work.n_delivered}")
        if work.acked and now_s - work.settled_s > self.ack_wait_s * 2:
            self.wrong.append(f"{sequence} was delivered again long after its ack")
        early = work.n_delivered and not work.due and now_s - work.touched_s < self.ack_wait_s * 0.9
        # An acknowledgement that is on its way does not hold up a delivery that falls due.
        done = work.acked and now_s - work.settled_s > 0.05
        if self.exact and ((early and not work.acked) or done):
            self.wrong.append(f"{sequence} was delivered again, though somebody works on it or it is done")
        work.n_delivered, work.due, work.touched_s = delivery.n_delivered, work.perhaps, now_s
        held = Held(delivery, asyncio.get_running_loop().create_future())
        self.held.append(held)
        if len({each.delivery.stored.sequence for each in self.held} - self._released()) > MAX_OUT:
            self.wrong.append("more is out than max_ack_pending allows")
        if self.auto_ack:
            held.decided.set_result("ack")
        try:
            decided = await held.decided
        finally:
            self.held.remove(held)
        await self._settle(delivery, work, decided)

    def _released(self) -> set[int]:
        """Purged facts, and those acknowledged by another delivery: the broker owes and counts nothing for them."""
        gone = {each.sequence for each in self.model.history} - set(self.model.stored)
        return gone | self.purging | {sequence for sequence, work in self.work.items() if work.acked or work.perhaps}

    async def _settle(self, delivery: Delivery, work: Work, decided: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if decided == "ack" and delivery.n_delivered < work.n_delivered:
            work.perhaps = work.due = True
            await delivery.ack()
        elif decided == "ack":
            work.acked, work.settled_s = True, now_s
            await delivery.ack()
        elif decided == "nak" and delivery.n_delivered == work.n_delivered:
            work.due = True
            await delivery.nak()

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data(), decided=st.sampled_from(["ack", "ack", "nak", "forget"]))
    def decide(self, data: Any, decided: str) -> None:
        held = data.draw(st.sampled_from(range(len(self.held))))

        async def tell() -> None:
            self.held[held].decided.set_result(decided)

        self.do(tell())

    @precondition(lambda self: bool(self.held))
    @rule(number=st.integers(0, 20))
    def go_on_working(self, number: int) -> None:
        delivery = self.held[number % len(self.held)].delivery
        work = self.work[delivery.stored.sequence]
        if delivery.n_delivered != work.n_delivered or work.acked or work.due:
            return

        async def extend() -> None:
            work.touched_s = asyncio.get_running_loop().time()
            await delivery.in_progress()

        self.do(extend())

    @rule(share=st.sampled_from([0.5, 1.2]))
    def time_passes(self, share: float) -> None:
        self.do(asyncio.sleep(self.ack_wait_s * share))

    @rule()
    def the_worker_dies(self) -> None:
        """Nothing that it held is acknowledged; another takes its place."""

        async def replace() -> None:
            # What the dying connection still gives back may come again at once.
            for work in self.work.values():
                work.due = work.due or not work.acked
            await self.worker.close()
            await self._employ()

        self.do(replace())
