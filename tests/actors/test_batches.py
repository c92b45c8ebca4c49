"""A batch is what OUTCOMES say, in their order, with each episode's own reward and tokens, however late a payload comes."""

import asyncio

from actors.runtime.batches import BatchFeed
from actors.runtime.memory import MemoryBus
from actors.runtime.memory_broker import MemoryBroker
from actors.runtime.platform import SystemPlatform
from asearch.learning.ledger import LedgerRules
from asearch.learning.planner import Admission
from schemas.codec import encode
from schemas.events import EpisodeGraded
from schemas.records import BlobRef, Trajectory
from tests.learning.outcome_stories import admitted_of, outcome_of
from tests.properties.test_batches import segment

RULES = LedgerRules(groups_per_step=3, max_refills=0, eta=1)


async def test_groups_come_in_the_order_of_outcomes_with_their_own_rewards() -> None:
    platform = SystemPlatform(0)
    bus = MemoryBus(MemoryBroker(platform), "r", "trainer", platform)
    await bus.ensure_topology()
    gate, get_blob = asyncio.Event(), bus.get_blob

    async def late(ref: BlobRef) -> bytes:
        if ref.episode.startswith("t-0"):
            await gate.wait()
        return await get_blob(ref)

    bus.get_blob = late  # type: ignore[method-assign]
    for slot in range(3):
        group = admitted_of(Admission(f"t-{slot}-0", "train", slot, 2, slot), 0)
        for member in range(2):
            graded = outcome_of(group, member, "graded", slot + member / 2, 0)
            assert isinstance(graded, EpisodeGraded)
            episode = graded.episode
            tokens = segment(f"{episode}:s0", [(2, 0, 0)])
            blob = await bus.put_blob(episode, encode(Trajectory(episode=episode, segments=[tokens])))
            fields = {name: getattr(graded, name) for name in graded.__struct_fields__} | {"trajectory": blob}
            await bus.append(EpisodeGraded(**fields), episode, expected=0)
    feed = BatchFeed(bus, RULES, None)
    feeding = asyncio.create_task(feed.run())
    async with asyncio.timeout(10.0):
        batch = await feed.batches.get()
        await asyncio.gather(*(task for name, task in batch.segments.items() if not name.startswith("t-0")))
        composing = asyncio.create_task(batch.groups())
        await asyncio.sleep(0)
        gate.set()
        groups = await composing
    assert [group.group for group in groups] == ["t-0-0", "t-1-0", "t-2-0"]
    told = [(each.episode, each.reward, each.segments[0].id) for group in groups for each in group.episodes]
    assert told == [(f"t-{n}-0-{m}", n + m / 2, f"t-{n}-0-{m}:s0") for n in range(3) for m in range(2)]
    feeding.cancel()
    await bus.close()
