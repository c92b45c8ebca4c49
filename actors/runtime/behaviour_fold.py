"""What the episodes of a run show, folded over its archive as that grows, a bounded piece of work at a time.

With a sample, the episodes whose names hash lowest are taken: always the same ones for the same archive, in whatever pieces it
was read, and of what comes later ever fewer have to be read.
"""

import asyncio
import heapq
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from actors.runtime.archive_index import ArchiveIndex
from asearch.traces.behaviour import Behaviour, behaviour_of, summarise
from asearch.traces.record import payloads_of, record_of
from schemas.archive import BLOBS, ArchivedEpisode
from schemas.events import Event

BATCH = 500
"""Episodes that one call reads at most: about an eighth of a second."""
BATCH_BYTES = 16 << 20
"""Bytes of lines after which a call stops too."""


class BehaviourFold:
    """One run. `sample` 0 takes every episode."""

    def __init__(self, archive: ArchiveIndex, sample: int = 0) -> None:
        self._archive = archive
        self._sample = sample
        self._chosen: dict[str, Behaviour] = {}
        self._worst: list[tuple[int, str]] = []
        """Of a sample: hashes of the chosen, negative, so that the highest is first out."""
        self._n_seen = 0
        self._lock = asyncio.Lock()
        self.n_unreadable = 0

    @property
    def n_episodes(self) -> int:
        """Archived episodes as of the last call."""
        return len(self._archive)

    @property
    def done(self) -> bool:
        """Whether all that was archived at the last call is folded."""
        return self._n_seen >= len(self._archive)

    @property
    def behaviours(self) -> list[Behaviour]:
        """Those that were taken; without a sample in the order of the archive."""
        return list(self._chosen.values())

    async def advance(self, max_episodes: int = BATCH) -> bool:
        """Fold some of what is new, in a thread; whether nothing is left. Calls at the same time wait for one another."""
        async with self._lock:
            await asyncio.to_thread(self._advance, max_episodes)
        return self.done

    async def finish(self) -> None:
        """Fold all that is archived by now."""
        while not await self.advance():
            pass

    def summary(self, n_buckets: int = 10) -> dict[str, Any]:
        """`summarise` of what was taken."""
        return summarise(self.behaviours, n_buckets)

    def to_json(self, n_buckets: int = 10) -> dict[str, Any]:
        """The answer for the page: how far it is, the summary, and the summary by policy step."""
        summary = self.summary(n_buckets)
        return {
            "n": len(self._chosen),
            "n_episodes": self.n_episodes,
            "n_unreadable": self.n_unreadable,
            "done": self.done,
            "by_step": summary.pop("by_step"),
            "summary": summary,
        }

    def _advance(self, max_episodes: int) -> None:
        self._archive.refresh()
        n_read = n_bytes = 0
        for name in self._archive.names(self._n_seen):
            if n_read >= max_episodes or n_bytes >= BATCH_BYTES:
                return
            self._n_seen += 1
            if self._is_wanted(name):
                n_read += 1
                n_bytes += self._take(name)

    def _is_wanted(self, name: str) -> bool:
        if not self._sample or len(self._worst) < self._sample:
            return True
        return _hash(name) < -self._worst[0][0]

    def _take(self, name: str) -> int:
        """Fold an episode; the bytes of its line. One that cannot be read is counted."""
        line = self._archive.line(name)
        try:
            entry = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.n_unreadable += 1
            return len(line)
        facts: list[Event] = list(entry.facts)
        record = record_of(name, facts, entry.sequences, entry.outcome, self._payloads(facts))
        self._chosen[name] = behaviour_of(record)
        if self._sample:
            heapq.heappush(self._worst, (-_hash(name), name))
            if len(self._worst) > self._sample:
                del self._chosen[heapq.heappop(self._worst)[1]]
        return len(line)

    def _payloads(self, facts: list[Event]) -> dict[str, bytes]:
        folder = self._archive.path.parent / BLOBS
        found: dict[str, bytes] = {}
        for ref in payloads_of(facts):
            try:
                found[ref.hash] = (folder / Path(ref.hash).name).read_bytes()
            except OSError:
                continue
        return found


_decoder = msgspec.json.Decoder(ArchivedEpisode)


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())
