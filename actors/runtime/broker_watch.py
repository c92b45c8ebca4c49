"""Keeping the broker of a workspace alive: it is started again when it died, and when its full disk has space again.

A nats-server that cannot write to a stream says nothing to whoever appends, and does not write to that stream again, however
much space there is, until it is restarted.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from actors.runtime.platform import Platform
from actors.runtime.supervisor import MAX_RESTARTS, PERIOD_S, Intensity, tail
from actors.runtime.workspace import Workspace
from asearch.errors import BusError

WATCH_S = 0.5
SETTLE_TIMEOUT_S = 10.0
FULL_BYTES = 16 << 20
"""Free space below which the largest append may fail."""
ROOM_BYTES = 64 << 20
"""Free space at which a broker that could not write is restarted."""
LOG_BYTES = 64 << 10
_STARTED, _FAILED = b"Starting nats-server", b"Critical write error"


def store_trouble(folder: Path) -> str | None:
    """What keeps the broker with this folder from storing, and what to do about it; None while it can."""
    try:
        n_free = shutil.disk_usage(folder).free
        with (folder / "nats.log").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - LOG_BYTES))
            life = log.read().rpartition(_STARTED)[2]
    except FileNotFoundError:
        return None
    if n_free < FULL_BYTES:
        return (
            f"the disk of the broker's store is full ({n_free >> 20} MiB left): free {ROOM_BYTES >> 20} MiB on {folder}; "
            "until then nothing is stored, and the run goes on by itself after that"
        )
    if _FAILED in life:
        return (
            f"the broker could not write to {folder} ({n_free >> 20} MiB are free) and takes no more: it is restarted "
            f"as soon as {ROOM_BYTES >> 20} MiB are free"
        )
    return None


class BrokerWatch:
    """Watches the broker on behalf of one run. `settle` is called after each of its starts."""

    def __init__(
        self,
        workspace: Workspace,
        platform: Platform,
        say: Callable[[str], None],
        settle: Callable[[], Awaitable[None]],
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        self._workspace = workspace
        self._platform = platform
        self._say = say
        self._settle = settle
        self._max_restarts = max_restarts
        self._deaths = Intensity(max_restarts)
        self._trouble: str | None = None

    async def run(self) -> None:
        """Watch until cancelled. Raises BusError if the broker dies too often, or cannot be started though there is space."""
        while True:
            await self._platform.sleep(WATCH_S)
            await self.look()

    async def look(self) -> None:
        """Look once, and do what is to be done."""
        folder = self._workspace.broker_folder
        trouble = await asyncio.to_thread(store_trouble, folder)
        if trouble is not None and self._trouble is None:
            self._say(trouble)
        self._trouble = self._trouble or trouble
        if self._trouble is not None and shutil.disk_usage(folder).free >= ROOM_BYTES:
            await self._workspace.restart_broker(self._platform)
            self._trouble = None
            await self._started("the broker's disk has space again: the broker was restarted")
        else:
            await self._revive()

    async def _revive(self) -> None:
        try:
            if not await self._workspace.revive_broker(self._platform):
                return
        except BusError as error:
            if self._trouble is not None:
                return
            raise BusError(f"the broker died and cannot be started again: {error}") from error
        await self._started("the broker had died and was started again")
        if self._deaths.exceeded(self._platform.monotonic()):
            log = tail(self._workspace.broker_folder / "nats.log")
            raise BusError(f"the broker died more than {self._max_restarts} times in {PERIOD_S:g} s; its log:\n{log}")

    async def _started(self, what: str) -> None:
        self._say(what)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._settle()
        except (BusError, TimeoutError) as error:
            # It may have died again; the next start does it.
            self._say(f"the broker's streams could not be checked: {str(error) or 'timeout'}")
