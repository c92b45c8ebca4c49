"""One question to a NATS server over its text protocol, for servers that no bus of ours has to be made for."""

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from actors.runtime.jsapi import STREAM_MISSING

TIMEOUT_S = 3.0
MAX_LINE = 8 << 20


class RefusedError(ConnectionError):
    """The server answered with an error."""


@dataclass
class Line:
    """An open connection and what the server said of itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    info: dict[str, Any]
    inbox: bytes
    """Where answers come to: of this connection alone, for all connections hear what is sent to a subject."""

    async def ask(self, subject: str, payload: object = None) -> tuple[dict[str, Any], int]:
        """The JSON answer and the middle of the time it took, in nanoseconds since the epoch. Raises OSError."""
        data = b"" if payload is None else msgspec.json.encode(payload)
        begun_ns = time.time_ns()
        self.writer.write(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), self.inbox, len(data), data))
        while True:
            line = await self.reader.readline()
            if line.startswith(b"MSG "):
                body = await self.reader.readexactly(int(line.split()[-1]) + 2)
                answer = _object(body)
                if "error" in answer:
                    raise RefusedError(f"the server refused {subject}: {answer['error']}")
                return answer, (begun_ns + time.time_ns()) // 2
            if line == b"PING\r\n":
                self.writer.write(b"PONG\r\n")
            elif not line or line.startswith(b"-ERR"):
                raise ConnectionError(f"the server refused {subject}: {line.decode('utf-8', 'replace').strip() or 'closed'}")

    async def stream(self, name: str, subjects: str = "") -> tuple[dict[str, Any], int] | None:
        """State and configuration of a stream, as `ask` answers; None if there is none of that name. Raises OSError.

        `subjects` is a filter: how many messages each subject has is told too.
        """
        payload = {"subjects_filter": subjects} if subjects else None
        try:
            return await self.ask(f"$JS.API.STREAM.INFO.{name}", payload)
        except RefusedError as error:
            if f"'err_code': {STREAM_MISSING}" in str(error):
                return None
            raise

    def close(self) -> None:
        """End the connection."""
        self.writer.close()


async def open_line(host: str, port: int) -> Line:
    """Connect. Raises OSError or TimeoutError if no NATS server answers there."""
    inbox = f"_INBOX.{uuid.uuid4().hex}".encode()
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port, limit=MAX_LINE)
        try:
            first = await reader.readline()
            if not first.startswith(b"INFO "):
                raise ConnectionError("what listens there is no NATS server")
            writer.write(b'CONNECT {"verbose":false,"pedantic":false,"name":"doctor"}\r\nSUB %s 1\r\n' % inbox)
        except BaseException:
            writer.close()
            raise
        return Line(reader, writer, _object(first[5:]), inbox)


def _object(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConnectionError(f"the server's answer cannot be read: {error}") from error
