"""Who listens to a feed: server-sent events to many, encoded once, with a bound on what waits for each of them.

A subscriber that does not read costs nothing but its bound: it is cut off, and its browser comes back with the position that it
had reached.
"""

import asyncio
from collections import deque

from aiohttp import web

from actors.runtime.platform import Platform
from actors.runtime.waking import Signal

MAX_WAITING = 4096
MAX_WAITING_BYTES = 32 << 20
WRITE_TIMEOUT_S = 10.0
ALIVE = b": still here\n\n"
"""A comment that tells a browser that its connection stands."""
GATHER_S = 0.05
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def sse(event: str, data: bytes, position: str = "") -> bytes:
    """One server-sent event. `data` is JSON without line ends, `position` what the browser names when it comes back."""
    named = f"id: {position}\n".encode() if position else b""
    return b"event: " + event.encode() + b"\n" + named + b"data: " + data + b"\n\n"


class Subscriber:
    """One connection. What is `put` is sent in order; of what is `show`n under a name only the newest waits."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._waiting: deque[bytes] = deque()
        self._n_bytes = 0
        self._shown: dict[str, bytes] = {}
        self._signal = Signal()
        self.is_cut_off = False

    def put(self, message: bytes) -> None:
        """Send this, or cut the subscriber off if too much waits already: what waits is sent, and nothing after it."""
        if self.is_cut_off:
            return
        if len(self._waiting) >= MAX_WAITING or self._n_bytes + len(message) > MAX_WAITING_BYTES:
            self.is_cut_off = True
        else:
            self._waiting.append(message)
            self._n_bytes += len(message)
        self._signal.set()

    def show(self, name: str, message: bytes) -> None:
        """Send this unless something newer of that name comes first."""
        self._shown[name] = message
        self._signal.set()

    def cut_off(self) -> None:
        """Send what waits, and end the connection."""
        self.is_cut_off = True
        self._signal.set()

    def _take(self) -> bytes:
        parts = [*self._waiting, *self._shown.values()]
        self._waiting.clear()
        self._shown.clear()
        self._n_bytes = 0
        return b"".join(parts)

    async def _next(self) -> bytes:
        """What comes next; a feed is `alive` now and then, so this ends."""
        while True:
            await self._signal.wait()
            # What comes together goes out together: one write for many small messages.
            await self._platform.sleep(GATHER_S)
            if (data := self._take()) or self.is_cut_off:
                return data

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send until the browser leaves, stops reading, or the server stops."""
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        try:
            await _write(response, b"retry: 1000\n\n")
            while not self.is_cut_off:
                await _write(response, await self._next())
            # A long story goes out in parts: the browser comes back with the position that it has reached.
            await _write(response, self._take())
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        else:
            response.force_close()
        return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        if data:
            await response.write(data)


class Audience:
    """The subscribers of one feed."""

    def __init__(self) -> None:
        self._members: set[Subscriber] = set()

    def __len__(self) -> int:
        return len(self._members)

    def join(self, subscriber: Subscriber) -> None:
        """Take one in."""
        self._members.add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        """Let one go."""
        self._members.discard(subscriber)

    def cut_off(self) -> None:
        """Send to all what waits for them, and end their connections."""
        for member in self._members:
            member.cut_off()

    def put(self, message: bytes) -> None:
        """Send to all, in order."""
        for member in self._members:
            member.put(message)

    def show(self, name: str, message: bytes) -> None:
        """Show all the newest of a name."""
        for member in self._members:
            member.show(name, message)
