"""The actor's side of a rank process: start it, send a command, wait for its reply. `rank_group` has several of them."""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from actors.runtime.platform import Platform, Process
from asearch.errors import StorageError, TrainingError
from schemas.local import MAX_FRAME_BYTES, Command, RankFailed, RankReady, Reply, encoder, reply_decoder

START_TIMEOUT_S = 180.0
LAST_WORDS_S = 1.0
"""Longest wait for the process to end, and with it its log, after it has closed its channel."""
R = TypeVar("R", bound=Reply)
_LENGTH = struct.Struct("<I")


class Rank(Protocol):
    """What a trainer needs of a rank."""

    async def ask(self, command: Command, expected: type[R], timeout_s: float) -> R:
        """Carry a command out. Raises TrainingError, or StorageError if it failed because of a disk."""
        ...

    async def stop(self, grace_s: float = 5.0) -> None:
        """End it."""
        ...


class RankProcess:
    """One rank. Commands are answered in order, one at a time."""

    def __init__(
        self,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log_path: Path,
        name: str = "the rank",
    ) -> None:
        self.process = process
        self.name = name
        self.ready: RankReady | None = None
        self._reader = reader
        self._writer = writer
        self._log_path = log_path
        self._turn = asyncio.Lock()
        self._is_out_of_step = False
        self._is_stopping = False

    @classmethod
    async def start(
        cls,
        platform: Platform,
        log_path: Path,
        env: dict[str, str] | None = None,
        options: Sequence[str] = (),
        name: str = "the rank",
    ) -> "RankProcess":
        """Start a rank and wait until it has imported what it needs. Raises TrainingError with the end of its log.

        `options` are further arguments of its command line; errors call it by `name`.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await platform.spawn(
                [sys.executable, "-m", "asearch.training.rank", "--fd", str(theirs.fileno()), *options],
                env=env,
                log_path=log_path,
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()
        try:
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
            rank = cls(process, reader, writer, log_path, name)
            ready = await rank._read(START_TIMEOUT_S)
            if isinstance(ready, RankFailed):
                raise TrainingError(f"{name} did not start: {ready.message}\n{ready.traceback}")
            if not isinstance(ready, RankReady):
                raise TrainingError(f"{name} did not start: {ready}")
            rank.ready = ready
        except BaseException:
            # Nobody else knows of the process yet; it has nothing to lose.
            ours.close()
            process.kill()
            raise
        return rank

    async def ask(self, command: Command, expected: type[R], timeout_s: float) -> R:
        """Send a command and wait for its reply.

        Raises TrainingError if the rank fails, dies or takes too long, StorageError if the command failed because of a disk.
        """
        return answer(await self.exchange(encoded(command), timeout_s), command, expected, self.name)

    async def exchange(self, data: bytes, timeout_s: float) -> Reply:
        """Send an encoded command and wait for any reply. Raises TrainingError if the rank is gone or takes too long."""
        async with self._turn:
            if self._is_out_of_step:
                raise TrainingError(f"the last reply of {self.name} was not waited for; it takes no more commands")
            self._is_out_of_step = True
            self._writer.write(_LENGTH.pack(len(data)))
            self._writer.write(data)
            with contextlib.suppress(ConnectionError):  # a rank that is gone is noticed, with its log, when its reply is read
                await self._writer.drain()
            reply = await self._read(timeout_s)
            self._is_out_of_step = False
        return reply

    async def _read(self, timeout_s: float) -> Reply:
        try:
            async with asyncio.timeout(timeout_s):
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                return reply_decoder.decode(await self._reader.readexactly(length))
        except TimeoutError as error:
            raise TrainingError(f"{self.name} did not answer within {timeout_s:g} s; {self.log_tail()}") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            # What it has to say comes after its channel has closed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.process.wait()
            raise TrainingError(f"{self.obituary()}; {self.log_tail()}") from error

    def obituary(self) -> str:
        """That the process is gone, and how it ended."""
        code = self.process.returncode
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit status {code})"
        return f"{self.name} is gone{how}"

    def log_tail(self) -> str:
        """The last lines of the rank's log, for an error message."""
        text = self._log_path.read_text(errors="replace") if self._log_path.is_file() else ""
        return f"the end of {self._log_path}:\n" + "\n".join(text.splitlines()[-15:])

    async def watch(self) -> None:
        """Wait for the end of the process. Raises TrainingError if nobody has asked for it."""
        await self.process.wait()
        if not self._is_stopping:
            raise TrainingError(f"{self.obituary()}; {self.log_tail()}")

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the process: ask by closing the channel, then by signal."""
        self._is_stopping = True
        self._writer.close()
        self.process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def encoded(command: Command) -> bytes:
    """The frame of a command. Raises TrainingError for one that is too large."""
    data = encoder.encode(command)
    if len(data) > MAX_FRAME_BYTES:
        raise TrainingError(f"a command of {len(data)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return data


def answer(reply: Reply, command: Command, expected: type[R], name: str) -> R:
    """`reply` if it is what `command` is answered with. Raises TrainingError, or StorageError for a failure of a disk."""
    if isinstance(reply, RankFailed) and reply.storage:
        raise StorageError(reply.message)
    if isinstance(reply, RankFailed):
        raise TrainingError(f"{name} could not {type(command).__name__}: {reply.message}\n{reply.traceback}")
    if not isinstance(reply, expected):
        raise TrainingError(f"{name} answered {type(command).__name__} with {type(reply).__name__}")
    return reply
