"""Byte ranges of files over one HTTP connection, read into the caller's memory."""

import http.client
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

from asearch.errors import TransferError, WeightsGoneError


@dataclass(frozen=True)
class Origin:
    """Where files are pulled from. `timeout_s` is the longest silence."""

    url: str
    token: str
    timeout_s: float = 30.0

    def __repr__(self) -> str:
        return f"Origin({self.url!r})"


class BrokenConnectionError(TransferError):
    """The connection could not be made or was cut; another one may go on."""


class NotReadyError(TransferError):
    """What was asked for is being made: ask again."""


class Connection:
    """One connection, made when it is needed and again after it broke."""

    def __init__(self, origin: Origin) -> None:
        parts = urllib.parse.urlsplit(origin.url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise TransferError(f"{origin.url!r} is no address to pull weights from: http://HOST:PORT is expected")
        self._origin = origin
        self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=origin.timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file. Raises as `stream` does."""
        block = memoryview(bytearray(max(1, end - start)))
        at = 0
        for data in self.stream(path, start, end, block):
            at += len(data)
        return bytes(block[:at])

    def fetch(self, path: str, most_bytes: int) -> bytes:
        """All of something whose size is not known. Raises as `stream` does."""
        try:
            response = self._request(path, {})
            data = response.read(most_bytes + 1)
            if response.status != HTTPStatus.OK or len(data) > most_bytes or not response.isclosed():
                raise TransferError(f"{self._origin.url}{path} answered {response.status} with {len(data)} bytes or more")
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise BrokenConnectionError(str(error) or type(error).__name__) from error
        return data

    def stream(self, path: str, start: int, end: int, block: memoryview) -> Iterator[memoryview]:
        """Bytes [start, end) of a file in pieces of at most the size of `block`, each there until the next is asked for.

        Raises BrokenConnectionError, WeightsGoneError if there is no such file, TransferError if the source refuses.
        """
        if start >= end:
            return
        done = False
        try:
            response = self._ask(path, start, end)
            while start < end:
                n = response.readinto(block[: min(len(block), end - start)])
                if not n:
                    raise BrokenConnectionError(f"cut {end - start} bytes before the end")
                start += n
                yield block[:n]
            response.read()
            done = True
        except (OSError, http.client.HTTPException) as error:
            raise BrokenConnectionError(str(error) or type(error).__name__) from error
        finally:
            if not done:
                self._http.close()

    def _ask(self, path: str, start: int, end: int) -> http.client.HTTPResponse:
        response = self._request(path, {"Range": f"bytes={start}-{end - 1}"})
        if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT) or response.length != end - start:
            raise TransferError(f"{self._origin.url}{path} answered {response.status} with {response.length} bytes")
        return response

    def _request(self, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._http.sock is None:
            self._http.connect()
        self._http.request("GET", path, headers={"Authorization": f"Bearer {self._origin.token}"} | headers)
        response = self._http.getresponse()
        if response.status == HTTPStatus.ACCEPTED:
            response.read()
            raise NotReadyError(f"{self._origin.url}{path} is being made")
        if response.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise WeightsGoneError(f"{self._origin.url}{path} is gone: a newer version has been published")
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise TransferError(f"{self._origin.url} refuses the token: give the engine that of the trainer's run folder")
        return response
