"""The tokens of updates: from BLOBS into the archive's files, and out of BLOBS once they are there.

What the journal refers to is archived, then purged. What it does not refer to, and cannot any more, is only purged: a trainer was
killed between storing and saying so, or was replaced. Steps of a lineage are stored and said one after the other, so a record
is not referred to once its step, or a younger claim, has been read and no reference to it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from actors.runtime.archive import write_once
from actors.runtime.bus import Bus, Stored
from asearch.errors import BlobMissingError, BusError
from schemas.archive import BLOBS
from schemas.events import BlobStored, StepTrained, TrainerClaimed
from schemas.records import BlobRef
from schemas.topology import step_tokens_key

_KEY = re.compile(r"step-(.+)-(\d+)-(\d+)")

Write = Callable[[Callable[[], None]], Awaitable[None]]


class StepArchive:
    """Hears POLICY and BLOBS in order; `archive` and `purge` do the work, in this order."""

    def __init__(self, bus: Bus, folder: Path, write: Write) -> None:
        """`folder` is the archive; `write` carries a write out and waits while the disk is full."""
        self._bus = bus
        self._folder = folder
        self._write = write
        self._log = structlog.get_logger()
        self._referred: dict[str, BlobRef] = {}
        """By key, what is not archived."""
        self._stored: set[str] = set()
        """Keys in BLOBS that are not purged."""
        self._read: dict[str, tuple[int, int]] = {}
        """By model, the newest lineage and step that the journal tells of."""
        self.sequence = 0
        """Of the last message of POLICY that was read."""
        self.n_missing = 0
        """Records that were gone before they were archived."""
        self._turn = asyncio.Lock()

    def on_policy(self, stored: Stored) -> None:
        """Take a message of POLICY; one that was taken before changes nothing."""
        if stored.sequence <= self.sequence:
            return
        self.sequence = stored.sequence
        match stored.event:
            case StepTrained(model=model, lineage=lineage, step=step, tokens=tokens):
                self._read[model] = (lineage, step)
                # The journal names any key it likes, and purging takes a whole key: only the step's own is followed.
                if tokens is not None and tokens.episode == step_tokens_key(model, lineage, step):
                    self._referred[tokens.episode] = tokens
            case TrainerClaimed(model=model, lineage=lineage):
                self._read[model] = (lineage, -1)
            case _:
                pass

    def on_blob(self, stored: Stored) -> None:
        """Take a message of BLOBS."""
        if isinstance(stored.event, BlobStored) and _KEY.fullmatch(stored.event.episode):
            self._stored.add(stored.event.episode)

    def forget_policy(self) -> None:
        """The broker has lost a tail of POLICY: it is read again from its start."""
        self.sequence = 0
        self._read.clear()
        self._referred.clear()

    def forget_blobs(self) -> None:
        """The same of BLOBS."""
        self._stored.clear()

    async def archive(self) -> None:
        """Write what the journal refers to, durable. Raises BusError."""
        async with self._turn:
            for key, ref in list(self._referred.items()):
                await self._archive(ref)
                self._referred.pop(key, None)

    async def purge(self) -> int:
        """Drop from BLOBS what is archived or will never be referred to; how many messages went. Raises BusError."""
        n_purged = 0
        for key in [each for each in sorted(self._stored) if self._is_over(each)]:
            self._stored.discard(key)
            try:
                n_purged += await self._bus.purge("blobs", key=(key,))
            except BusError:
                self._stored.add(key)
                raise
        return n_purged

    def _is_over(self, key: str) -> bool:
        found = _KEY.fullmatch(key)
        if found is None or key in self._referred:
            return False
        return (int(found[2]), int(found[3])) <= self._read.get(found[1], (-1, -1))

    async def _archive(self, ref: BlobRef) -> None:
        path = self._folder / BLOBS / ref.hash
        if path.exists():
            return
        try:
            data = await self._bus.get_blob(ref)
        except BlobMissingError as error:
            self.n_missing += 1
            self._log.error("the tokens of an update cannot be archived", key=ref.episode, error=str(error))
            return
        await self._write(lambda: write_once(path, data))
