"""Loads what the trainer publishes: the newest announced version is prepared beside serving, then loaded in a pause."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Protocol

import structlog

from actors.runtime.bus import Bus
from actors.runtime.platform import Platform
from actors.runtime.transfer.transfer import LostVersionError, SpoiledServerError, Transfer, WeightReceiver
from asearch.errors import AsearchError, ChecksumError, EngineError, StorageError, TransferError, WeightsGoneError
from schemas.events import PolicyPublished

MAX_LOADS = 5
"""Loads in a row that a server may refuse before the actor gives it up."""
RETRY_S = 1.0
"""Wait after the first failure; it doubles with every further one in a row."""
MAX_RETRY_S = 30.0
KEPT_PAUSES = 1000
NEWER_S = 30.0
"""How long a newer version may take to be announced once one was deleted while it was loaded."""


class PausingServer(WeightReceiver, Protocol):
    """An inference server whose generation can be suspended."""

    async def pause(self, mode: str = "retract") -> None:
        """Suspend generation."""
        ...

    async def resume(self) -> None:
        """End a pause."""
        ...


class PolicyFollower:
    """Keeps one server at the newest version. Until a version is loaded the server goes on under the one that it has."""

    def __init__(
        self,
        bus: Bus,
        platform: Platform,
        transfer: Transfer,
        loaded: Callable[[PolicyPublished], Awaitable[None]],
    ) -> None:
        """`loaded` hears of every version that the server serves from then on."""
        self._bus = bus
        self._platform = platform
        self._transfer = transfer
        self._server: PausingServer | None = None
        self._attached = asyncio.Event()
        self._heard = loaded
        self._newest: asyncio.Queue[PolicyPublished] = asyncio.Queue(maxsize=1)
        self._last: PolicyPublished | None = None
        self._log = structlog.get_logger()
        self._pauses_s: deque[float] = deque(maxlen=KEPT_PAUSES)
        self._is_loading = False
        self._update_s = 0.0
        self._n_updates = 0
        self._n_transfers_failed = 0

    def gauges(self) -> dict[str, float]:
        """Updates, transfers that failed; seconds from the start of the last one to its end, and of its pauses."""
        pauses_s = sorted(self._pauses_s)
        return {
            "n_updates": self._n_updates,
            "n_transfers_failed": self._n_transfers_failed,
            "update_s": self._update_s,
            "pause_s": self._pauses_s[-1] if self._pauses_s else 0.0,
            "pause_p50_s": pauses_s[len(pauses_s) // 2] if pauses_s else 0.0,
            "pause_p99_s": pauses_s[int(len(pauses_s) * 0.99)] if pauses_s else 0.0,
            **self._transfer.gauges(),
        }

    def start(self, spawn: Callable[[Coroutine[Any, Any, None], str], object]) -> None:
        """Follow for the life of the tasks that `spawn` makes."""
        spawn(self._follow(), "policy")
        spawn(self._load_each(), "weights")

    @property
    def is_loading(self) -> bool:
        """Whether generation is paused for a version that is being loaded."""
        return self._is_loading

    @property
    def is_attached(self) -> bool:
        """Whether there is a server."""
        return self._attached.is_set()

    def attach(self, server: PausingServer) -> None:
        """Load into this server from now on, the newest version first."""
        self._server = server
        self._attached.set()
        if self._last is not None and self._newest.empty():
            self._newest.put_nowait(self._last)

    def detach(self) -> None:
        """There is no server until the next one is attached."""
        self._server = None
        self._attached.clear()

    async def _follow(self) -> None:
        """Hear what the trainer publishes; of several that wait only the newest is loaded."""
        async with aclosing(self._bus.read("policy", events=(PolicyPublished,))) as reader:
            async for stored in reader:
                if not isinstance(stored.event, PolicyPublished):
                    continue
                if self._newest.full():
                    self._newest.get_nowait()
                self._newest.put_nowait(stored.event)
                self._last = stored.event

    async def _load_each(self) -> None:
        n_refused = n_failed = 0
        while True:
            await self._attached.wait()
            published = await self._newest.get()
            try:
                await self._load(published)
                n_refused = n_failed = 0
                continue
            except WeightsGoneError as error:
                self._log.info("version is gone already", version=str(published.version), error=str(error))
                continue
            except SpoiledServerError:
                raise
            except EngineError as error:
                if not self.is_attached:
                    continue  # the next server is given the newest version anyway
                n_refused += 1
                self._log.warning("version not loaded", version=str(published.version), error=str(error), n=n_refused)
                if n_refused >= MAX_LOADS:
                    raise
            except (TransferError, StorageError) as error:
                # What does not arrive is no reason to stop serving what is there.
                n_failed += 1
                self._n_transfers_failed += 1
                told = self._log.error if isinstance(error, ChecksumError) else self._log.warning
                told("version did not arrive", version=str(published.version), error=str(error), n=n_failed)
            await self._wait(RETRY_S * 2 ** (n_refused + n_failed - 1))
            with suppress(asyncio.QueueFull):
                self._newest.put_nowait(published)

    async def _wait(self, delay_s: float) -> None:
        """Wait before the same version is tried again; a newer one need not wait."""
        left_s = min(delay_s, MAX_RETRY_S)
        while left_s > 0.0 and self._newest.empty():
            await self._platform.sleep(min(left_s, RETRY_S))
            left_s -= RETRY_S

    async def _load(self, published: PolicyPublished) -> None:
        begun_s = self._platform.monotonic()
        server = self._server
        if server is None:
            raise EngineError("there is no server to load into")
        await self._transfer.prepare(server, published)
        await self._platform.fault("engine.prepared")
        paused_s = self._platform.monotonic()
        self._is_loading = True
        try:
            published = await self._exchange(server, published)
        finally:
            self._is_loading = False
        if server is not self._server:
            raise EngineError("the server was replaced while it loaded")
        ended_s = self._platform.monotonic()
        self._pauses_s.append(ended_s - paused_s)
        self._update_s = ended_s - begun_s
        self._n_updates += 1
        await self._heard(published)
        await self._platform.fault("engine.loaded")

    async def _exchange(self, server: PausingServer, published: PolicyPublished) -> PolicyPublished:
        """Load in a pause; returns what the server has at its end. Raises SpoiledServerError while it is suspended for good."""
        await server.pause("retract")
        try:
            await self._transfer.load(server, published)
        except LostVersionError as error:
            published = await self._make_up(server, error)
        except SpoiledServerError:
            raise
        except BaseException:
            await server.resume()
            raise
        await server.resume()
        return published

    async def _make_up(self, server: PausingServer, lost: LostVersionError) -> PolicyPublished:
        """Load the version for which another one was deleted, into a server whose weights are mixed.

        Raises SpoiledServerError.
        """
        self._log.warning("a newer version is loaded instead", error=str(lost))
        while True:
            try:
                async with asyncio.timeout(NEWER_S):
                    published = await self._newest.get()
                await self._transfer.prepare(server, published)
                await self._transfer.load(server, published)
            except (WeightsGoneError, LostVersionError):
                continue  # there is one that is newer still
            except (AsearchError, TimeoutError) as error:
                why = str(error) or f"none was announced within {NEWER_S:g} s"
                raise SpoiledServerError(f"{lost}; a newer version was not loaded either: {why}") from error
            return published
