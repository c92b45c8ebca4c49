"""The trainer's side of broadcasts: a child process is rank 0 of a group of engines, made again when its members change.

The trainer waits for none of it. A version is announced with a broadcast only if the group stands ready; a member that does
not answer costs the group its life, the version is pulled by everybody, and the next group is made of those that live.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from pathlib import Path

import msgspec
import structlog

from actors.runtime.bus import Bus, Incoming
from actors.runtime.platform import Platform, Process
from asearch.configuration.transfer import TransferSettings
from asearch.errors import TransferError
from schemas.broadcasting import SenderReady, SendFailed, SendWeights, WeightsSent, encoder, reply_decoder
from schemas.commands import Heartbeat
from schemas.records import Broadcast, Version, WeightManifest

SEEN_S = 5.0
"""An engine that has not been heard for so long is no member."""
START_TIMEOUT_S = 60.0
SPARE_S = 10.0
"""What a sender may take beyond the group's timeout before it is killed."""
RETRY_S = 10.0
"""Wait after a sender that did not start, or whose first broadcast failed; it doubles with every further one in a row."""
MAX_RETRY_S = 600.0
TAKES = "takes_broadcast"
"""Gauge of engines that can be members."""
Life = tuple[int, float]
"""Of a member: its engine's process, and how often that has started a server. Another one is not in the group."""
_LENGTH = struct.Struct("<I")


class Sender:
    """One child process with one group."""

    def __init__(self, process: Process, channel: socket.socket, group: str, lives: dict[str, Life]) -> None:
        self.process = process
        self.group = group
        self.lives = lives
        self.members = sorted(lives)
        self.port = 0
        self._channel = channel

    async def open(self) -> None:
        """Wait until it listens. Raises TransferError."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._channel)
        reply = await self._read(START_TIMEOUT_S)
        if not isinstance(reply, SenderReady):
            raise TransferError(f"the sender of weights did not start: {reply}")
        self.port = reply.port

    async def send(self, command: SendWeights, timeout_s: float) -> WeightsSent:
        """Broadcast a folder. Raises TransferError."""
        data = encoder.encode(command)
        self._writer.write(_LENGTH.pack(len(data)) + data)
        reply = await self._read(timeout_s)
        if isinstance(reply, WeightsSent):
            return reply
        raise TransferError(reply.message if isinstance(reply, SendFailed) else f"the sender of weights answered {reply}")

    async def _read(self, timeout_s: float) -> SenderReady | WeightsSent | SendFailed:
        try:
            async with asyncio.timeout(timeout_s):
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                return reply_decoder.decode(await self._reader.readexactly(length))
        except (TimeoutError, OSError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            raise TransferError(f"the sender of weights did not answer: {error or type(error).__name__}") from error

    async def end(self) -> None:
        """Kill it: members that wait for it learn it at once."""
        self.process.kill()
        with contextlib.suppress(AttributeError):
            self._writer.close()
        await self.process.wait()


class Broadcaster:
    """Keeps a group with the engines that could take a broadcast, and sends what is announced with one."""

    def __init__(self, bus: Bus, platform: Platform, log_path: Path, settings: TransferSettings) -> None:
        self._bus = bus
        self._platform = platform
        self._log_path = log_path
        self._settings = settings
        self._log = structlog.get_logger()
        self._seen_s: dict[str, float] = {}
        self._lives: dict[str, Life] = {}
        self._sender: Sender | None = None
        self._task: asyncio.Task[None] | None = None
        """What goes on beside training: a group that is being made, or a version that is being sent."""
        self._n_fruitless = 0
        """Senders in a row that have sent nothing."""
        self._not_before_s = 0.0
        self._sending = ""
        """Name of the folder that is being sent."""
        self.n_sent = 0
        self.n_failed = 0

    async def start(self) -> None:
        """Listen for engines."""
        await self._bus.subscribe(Heartbeat, ">", self._heard)

    async def _heard(self, incoming: Incoming) -> None:
        beat = incoming.message
        if isinstance(beat, Heartbeat) and beat.actor == "engine":
            takes = beat.state == "ready" and beat.gauges.get(TAKES, 0.0) > 0.0
            self._seen_s[beat.actor_id] = self._platform.monotonic() if takes else 0.0
            self._lives[beat.actor_id] = (beat.pid, beat.gauges.get("n_server_starts", 0.0))

    def _present(self) -> dict[str, Life]:
        now_s = self._platform.monotonic()
        return {name: self._lives[name] for name, seen_s in self._seen_s.items() if seen_s and now_s - seen_s < SEEN_S}

    def offer(self, manifest: WeightManifest) -> WeightManifest:
        """The manifest with a broadcast, if a group stands ready for one; else a group is made beside training."""
        if self._task is not None and not self._task.done():
            return manifest
        present = self._present()
        if self._sender is not None and self._sender.lives == present and self._sender.process.returncode is None:
            settings = self._settings
            broadcast = Broadcast(
                group=self._sender.group,
                address=settings.address or settings.bind,
                port=self._sender.port,
                members=self._sender.members,
                pids=[present[member][0] for member in self._sender.members],
                backend=settings.backend,
                timeout_s=settings.broadcast_timeout_s,
            )
            return msgspec.structs.replace(manifest, broadcast=broadcast)
        if self._sender is not None or (present and self._platform.monotonic() >= self._not_before_s):
            self._task = asyncio.create_task(self._make(present))
        return manifest

    def send(self, manifest: WeightManifest, version: Version) -> None:
        """Send what has been announced, if it was with a broadcast; returns at once."""
        if manifest.broadcast is not None and self._sender is not None:
            self._sending = Path(manifest.path).name
            self._task = asyncio.create_task(self._send(self._sender, manifest, version))

    @property
    def kept(self) -> list[str]:
        """Names of the folders that must stay: what is being sent is read."""
        return [self._sending] if self._sending else []

    async def _make(self, lives: dict[str, Life]) -> None:
        await self._end_sender()
        if not lives or self._platform.monotonic() < self._not_before_s:
            return
        group = f"weights-{self._platform.new_id()}"
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        settings = self._settings
        try:
            process = await self._platform.spawn(
                [
                    *(sys.executable, "-m", "asearch.models.broadcast", "--fd", str(theirs.fileno()), "--group", group),
                    *("--world-size", str(1 + len(lives)), "--backend", settings.backend, "--bind", settings.bind),
                    *("--timeout-s", str(settings.broadcast_timeout_s)),
                ],
                log_path=self._log_path,
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            ours.close()
            self._failed()
            self._log.warning("no process for broadcasts", error=str(error))
            return
        finally:
            theirs.close()
        sender = Sender(process, ours, group, lives)
        try:
            await sender.open()
        except TransferError as error:
            self._failed()
            self._log.warning("no group for broadcasts", error=str(error), log=str(self._log_path))
            await sender.end()
            return
        self._sender = sender

    async def _send(self, sender: Sender, manifest: WeightManifest, version: Version) -> None:
        command = SendWeights(path=manifest.path, files=[shard.name for shard in manifest.shards])
        try:
            # Forming the group and sending may each take the timeout.
            sent = await sender.send(command, 2 * self._settings.broadcast_timeout_s + SPARE_S)
        except TransferError as error:
            self._failed()
            self._log.warning("a broadcast failed", version=str(version), members=sender.members, error=str(error))
            await self._end_sender()
        else:
            self.n_sent += 1
            self._n_fruitless = 0
            self._log.info("broadcast", version=str(version), n_bytes=sent.n_bytes, elapsed_s=sent.elapsed_ns / 1e9)
        finally:
            self._sending = ""

    def _failed(self) -> None:
        """The next sender is not started at once: its imports take the processor from training, and it may fail like this one."""
        self.n_failed += 1
        self._not_before_s = self._platform.monotonic() + min(MAX_RETRY_S, RETRY_S * 2**self._n_fruitless)
        self._n_fruitless = min(self._n_fruitless + 1, 10)

    async def _end_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            await sender.end()

    async def stop(self) -> None:
        """End the group."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._end_sender()
