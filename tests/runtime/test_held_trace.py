"""A driver's view of its episode against what the broker holds: lost tails, other drivers, sequences given out again."""

import pytest

from actors.runtime.bus import Bus
from actors.runtime.held_trace import Abandoned, HeldTrace
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from asearch.errors import ConflictError
from schemas.codec import encode
from schemas.events import EpisodeTaken, ToolReturned
from tests.runtime.conftest import Harness
from tests.runtime.facts import dropped, requested

RUN = "r"


def taken(attempt: int = 0, driver: str = "a", episode: str = "e1") -> EpisodeTaken:
    return EpisodeTaken(
        id=f"{episode}-taken-{attempt}",
        at_ns=7,
        episode=episode,
        driver=driver,
        attempt=attempt,
        request=requested(episode, attempt),
    )


def fact(n: int, attempt: int = 0, driver: str = "a", episode: str = "e1") -> ToolReturned:
    return ToolReturned(id=f"{episode}-{attempt}-{n}", episode=episode, attempt=attempt, driver=driver, call=str(n), turn=n)


class Scene:
    """A broker that can lose tails, and drivers."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(SystemPlatform(0))
        self.bus = MemoryBus(self.broker, RUN, "driver", self.broker.platform)

    async def held(self, n_facts: int, attempt: int = 0, driver: str = "a") -> HeldTrace:
        """An episode with its first facts."""
        trace = HeldTrace(self.bus, "e1")
        await trace.take(taken(attempt, driver), await trace.read())
        for n in range(n_facts):
            await trace.append(fact(n, attempt, driver))
        return trace

    def lose(self, n: int) -> None:
        """Forget the last `n` messages of TRACE."""
        self.broker.stream(RUN, "trace").lose_tail(n)

    async def stored(self) -> list[bytes]:
        """What TRACE holds of the episode."""
        return [item.data for item in await self.bus.read_key("trace", "e1")]


@pytest.fixture
async def scene() -> Scene:
    held = Scene()
    await held.bus.ensure_topology()
    return held


@pytest.mark.parametrize("n_lost", range(5))
async def test_what_a_broker_lost_is_appended_again_byte_by_byte(scene: Scene, n_lost: int) -> None:
    """Four facts are stored; with the fifth the driver notices. All may be lost, the `EpisodeTaken` too."""
    trace = await scene.held(3)
    before = await scene.stored()
    scene.lose(n_lost)
    await trace.append(fact(3))
    assert await scene.stored() == [*before, encode(fact(3))]
    assert trace.n_reconciled == 1
    await trace.append(fact(4))
    assert len(await scene.stored()) == 6


async def test_a_refusal_alone_tells_of_the_loss(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost tail need not have cost this driver its connection."""
    monkeypatch.setattr(MemoryBus, "n_reconnects", 0)
    trace = await scene.held(3)
    before = await scene.stored()
    scene.lose(2)
    await trace.append(fact(3))
    assert await scene.stored() == [*before, encode(fact(3))]


async def test_a_loss_is_made_good_without_an_append_of_its_own(scene: Scene) -> None:
    trace = await scene.held(2)
    before = await scene.stored()
    scene.lose(2)
    await trace.refresh()
    assert await scene.stored() == before
    await trace.refresh()
    assert trace.n_reconciled == 1


@pytest.mark.parametrize("n_facts", [0, 3])
async def test_a_driver_that_slept_through_a_takeover_abandons(scene: Scene, n_facts: int) -> None:
    sleeper = await scene.held(2)
    heir = HeldTrace(scene.bus, "e1")
    await heir.take(taken(1, "b"), await heir.read())
    for n in range(n_facts):
        await heir.append(fact(10 + n, 1, "b"))
    with pytest.raises(Abandoned, match="another driver"):
        await sleeper.append(fact(2))
    await heir.append(fact(2, 1, "b"))
    assert len(await scene.stored()) == 5 + n_facts
    assert heir.n_reconciled == 0


async def test_an_own_prefix_with_a_strangers_facts_behind_it_is_abandoned(scene: Scene) -> None:
    """All that this driver knows is there, and more: it is not the holder."""
    sleeper = await scene.held(2)
    heir = HeldTrace(scene.bus, "e1")
    await heir.take(taken(1, "b"), await heir.read())
    with pytest.raises(Abandoned):
        await sleeper.reconcile()


@pytest.mark.parametrize("first", ["sleeper", "heir"])
async def test_of_two_drivers_that_survive_a_loss_one_goes_on(scene: Scene, first: str) -> None:
    """The takeover itself is lost: both know a longer story than the broker does, and the first to tell it wins."""
    sleeper = await scene.held(2)
    heir = HeldTrace(scene.bus, "e1")
    await heir.take(taken(1, "b"), await heir.read())
    await heir.append(fact(2, 1, "b"))
    scene.lose(3)
    tell = {"sleeper": (sleeper, fact(2)), "heir": (heir, fact(3, 1, "b"))}
    winner, own = tell.pop(first)
    ((loser, other),) = tell.values()
    await winner.append(own)
    with pytest.raises(Abandoned):
        await loser.append(other)
    assert await scene.stored() == [encode(each) for each in winner.known]


async def test_a_late_fact_of_an_earlier_driver_is_passed_over(scene: Scene) -> None:
    """A loss made its expected sequence true again: the broker takes its fact, nobody else does."""
    heir = HeldTrace(scene.bus, "e1")
    await scene.held(1)
    await heir.take(taken(1, "b"), await heir.read())
    await scene.bus.append(fact(9, 0, "a"), "e1", expected=heir.last_sequence)
    await heir.append(fact(1, 1, "b"))
    await heir.append(fact(2, 1, "b"))
    assert [item.key for item in await heir.read()] == [("e1",)] * 6
    third = HeldTrace(scene.bus, "e1")
    await third.take(taken(2, "c"), await third.read())
    assert [each.id for each in third.known] == ["e1-taken-0", "e1-0-0", "e1-taken-1", "e1-1-1", "e1-1-2", "e1-taken-2"]


async def test_a_success_behind_somebody_elses_message_is_noticed(scene: Scene) -> None:
    """After a loss another driver answers the same request, and its sequence is the one that this driver expects."""
    trace = await scene.held(1)
    scene.lose(2)
    await scene.bus.append(taken(0, "b"), "e1", expected=0)
    await scene.bus.append(fact(0, 0, "b"), "e1", expected=1)
    with pytest.raises(Abandoned):
        await trace.append(fact(1))


async def test_an_episode_that_has_ended_is_not_told_again(scene: Scene) -> None:
    """Its facts may have been archived and purged: nothing of them must come back."""
    trace = await scene.held(2)
    await scene.bus.append(dropped("e1"), "e1", expected=0)
    await scene.bus.purge("trace", key=("e1",))
    with pytest.raises(Abandoned, match="ended"):
        await trace.append(fact(2))
    assert await scene.stored() == []


async def test_bytes_that_nobody_can_read_do_not_cost_an_episode(harness: Harness) -> None:
    bus: Bus = await harness.bus()
    await bus.ensure_topology()
    trace = HeldTrace(bus, "e1")
    await trace.take(taken())
    await harness.inject("trace", f"asearch.{harness.run}.trace.tokens.generated.e1", b"\xc1 nonsense")
    await trace.append(fact(0))
    await trace.append(fact(1))
    assert [item.event for item in await trace.read()] == [taken(), None, fact(0), fact(1)]
    heir = HeldTrace(bus, "e1")
    with pytest.raises(ConflictError):
        await heir.take(taken(1, "b"), (await heir.read())[:-1])
    await heir.take(taken(1, "b"), await heir.read())
    with pytest.raises(Abandoned):
        await trace.append(fact(2))
