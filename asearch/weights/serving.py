"""The trainer's host serves its announced weights: `python -m asearch.weights.serving --root FOLDER ...`, a process of its own.

HTTP/1.1 with byte ranges; bodies leave by sendfile, a thread for each connection, so that no puller waits for another one. Only
files that `announce` has named are served, below folders that exist under their final name, to whoever has the token.
"""

import argparse
import contextlib
import hmac
import http.server
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from asearch.errors import TransferError
from asearch.parent import die_with_parent
from asearch.weights import sglang
from asearch.weights.checking import SUFFIX
from asearch.weights.delta import DELTA_FROM
from asearch.weights.delta_serving import Deltas
from asearch.weights.ranges import NotReadyError
from schemas.records import WeightManifest

MAX_CONNECTIONS = 256
IDLE_S = 60.0
"""After so long without a request or without progress a connection is closed."""
READING = ".reading"
"""Suffix of the file, beside the list of what is announced, that tells what is read."""
NOTE_S = 1.0
_PATH = re.compile(r"/([A-Za-z0-9.]+)/([A-Za-z0-9._-]+)\Z")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


def announce(list_path: Path, manifests: Iterable[WeightManifest]) -> None:
    """Let exactly the files of these manifests be served; a reader sees the old list or the new one."""
    names = {
        Path(manifest.path).name: sorted([*(s.name for s in manifest.shards), *(c.name for c in manifest.companions)])
        for manifest in manifests
    }
    aside = list_path.with_name(list_path.name + ".partial")
    aside.write_bytes(msgspec.json.encode(names))
    aside.replace(list_path)


def read_lately(list_path: Path) -> dict[str, float]:
    """Seconds since the epoch at which a folder was last asked for, by its name; what is not to be had is empty."""
    try:
        return msgspec.json.decode(list_path.with_suffix(READING).read_bytes(), type=dict[str, float])
    except (OSError, msgspec.MsgspecError):
        return {}


class Announced:
    """What may be read, as `announce` said last."""

    def __init__(self, root: Path, list_path: Path) -> None:
        """`list_path` is the file that `announce` writes: the names of the files that may be read, by folder."""
        self._root = root
        self._list_path = list_path
        self._names: Mapping[str, list[str]] = {}
        self._stamp: tuple[int, int] | None = None
        self._turn = threading.Lock()
        self._n_readers: Counter[str] = Counter()
        self._read_at: dict[str, float] = {}
        self._noted_at = 0.0
        self._computing = threading.Lock()
        self._held: dict[str, bytes] = {}
        self._deltas = Deltas(root)

    def open(self, path: str) -> BinaryIO | None:
        """The file that a request's path names, None if there is none. Raises NotReadyError for a delta that is being made."""
        found = _PATH.match(path)
        if found is not None and found[2].startswith(DELTA_FROM):
            return self._deltas.open(found[2].removeprefix(DELTA_FROM), found[1], lambda name: self._listed().get(name, ()))
        if found is None or found[2] not in self._listed().get(found[1], ()):
            return None
        try:
            handle = os.open(self._root / found[1] / found[2], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        return os.fdopen(handle, "rb", buffering=0)  # type: ignore[return-value]

    def forget(self) -> None:
        """Give back the room of deltas to versions that are deleted."""
        self._deltas.forget(lambda name: self._listed().get(name, ()))

    @contextlib.contextmanager
    def reading(self, path: str) -> Generator[None]:
        """While a file is sent: its folder is told of as one that is read."""
        name = path.split("/")[1]
        with self._turn:
            self._n_readers[name] += 1
        self.note()
        try:
            yield
        finally:
            with self._turn:
                self._n_readers[name] -= 1

    def note(self) -> None:
        """Tell now and then what is read, so that it is not deleted under its reader."""
        with self._turn:
            now = time.time()
            read = {name: now for name, n in self._n_readers.items() if n}
            if read.keys() <= self._read_at.keys() and (not read or now - self._noted_at < NOTE_S):
                return
            self._noted_at = now
            self._read_at = {name: at for name, at in self._read_at.items() if name in self._names} | read
            self._n_readers = +self._n_readers
            aside = self._list_path.with_suffix(READING + ".partial")
            with contextlib.suppress(OSError):
                aside.write_bytes(msgspec.json.encode(self._read_at))
                aside.replace(self._list_path.with_suffix(READING))

    def held(self, path: str) -> bytes | None:
        """What SGLang tells of the folder that a request's path names, as JSON; None if there is no such folder.

        Computed when it is first asked for, which takes as long as to read and hash the folder.
        """
        found = _PATH.match(path)
        if found is None or found[2] != sglang.FILE:
            return None
        with self._computing:
            listed = self._listed()
            self._held = {name: held for name, held in self._held.items() if name in listed}
            if found[1] not in listed:
                return None
            if found[1] not in self._held:
                files = [file for file in listed[found[1]] if file.endswith(SUFFIX)]
                try:
                    self._held[found[1]] = msgspec.json.encode(sglang.held_weights(self._root / found[1], files))
                except (OSError, TransferError) as error:
                    sys.stderr.write(f"no checksums of {found[1]}: {error}\n")
                    return None
            return self._held[found[1]]

    def _listed(self) -> Mapping[str, list[str]]:
        with self._turn:
            try:
                status = self._list_path.stat()
                stamp = (status.st_ino, status.st_mtime_ns)
                if stamp != self._stamp:
                    data = self._list_path.read_bytes()
                    self._names, self._stamp = msgspec.json.decode(data, type=dict[str, list[str]]), stamp
            except (OSError, msgspec.MsgspecError):
                self._names, self._stamp = {}, None
            return self._names


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: "WeightServer"  # pyright: ignore[reportIncompatibleVariableOverride]  (what made the handler)

    def do_GET(self) -> None:
        """Send a file, or the range of it that is asked for."""
        expected = f"Bearer {self.server.token}".encode()
        if not hmac.compare_digest(self.headers.get("Authorization", "").encode(errors="replace"), expected):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        held = self.server.announced.held(self.path)
        if held is not None:
            self._answer(held)
            return
        try:
            file = self.server.announced.open(self.path)
        except NotReadyError:
            self._refuse(HTTPStatus.ACCEPTED)
            return
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with file, self.server.announced.reading(self.path):
            size_bytes = os.fstat(file.fileno()).st_size
            asked = self._asked(size_bytes)
            if asked is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
            self._send(file, *asked, size_bytes)

    def _asked(self, size_bytes: int) -> tuple[int, int] | None:
        """[start, end) of the file; None where that is not within it."""
        text = self.headers.get("Range")
        if text is None:
            return 0, size_bytes
        found = _RANGE.match(text)
        if found is None:
            return None
        start, end = int(found[1]), int(found[2]) + 1 if found[2] else size_bytes
        return (start, end) if start < end <= size_bytes else None

    def _send(self, file: BinaryIO, start: int, end: int, size_bytes: int) -> None:
        whole = end - start == size_bytes
        self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Type", "application/octet-stream")
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size_bytes}")
        self.end_headers()
        if end > start and self.connection.sendfile(file, start, end - start) < end - start:
            # The file is shorter than it was: the length that was promised cannot be kept.
            self.close_connection = True

    def _answer(self, data: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def version_string(self) -> str:
        """Tells nothing of what answers."""
        return "asearch"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: paths hold nothing that a reader needs, headers hold the token."""

    def handle(self) -> None:
        """Answer requests until the peer leaves."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()


class WeightServer(http.server.ThreadingHTTPServer):
    """Serves one root to any number of pullers, each connection by a thread, at most `MAX_CONNECTIONS` at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, list_path: Path, token: str, bind: str, port: int) -> None:
        self.announced = Announced(root, list_path)
        self.token = token
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        super().__init__((bind, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or close it where there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on the connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def service_actions(self) -> None:
        """Twice a second."""
        self.announced.note()
        self.announced.forget()

    def server_bind(self) -> None:
        """Bind without asking a name server for the name of the address."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def main() -> None:
    """Parse the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m asearch.weights.serving", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with the published folders")
    parser.add_argument("--announced", type=Path, required=True, help="file with the names of what may be read")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (see --port-file)")
    parser.add_argument("--port-file", type=Path, help="file to write the port into, once the server is ready")
    parser.add_argument("--token-file", type=Path, required=True, help="file that holds the token of pullers")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the process that started this one ends (Linux)")
    given = parser.parse_args()
    # A Ctrl-C in the terminal reaches the whole process group; the trainer decides when its source stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if given.die_with_parent:
        die_with_parent(signal.SIGKILL)
    token = given.token_file.read_text().strip()
    if not token:
        parser.error(f"{given.token_file} is empty")
    try:
        server = WeightServer(given.root, given.announced, token, given.bind, given.port)
    except OSError as error:
        sys.exit(f"cannot listen at {given.bind}:{given.port}: {error.strerror}; set transfer.bind to an address of this host")
    if given.port_file is not None:
        aside = given.port_file.with_name(given.port_file.name + ".partial")
        aside.write_text(f"{server.server_port}\n")
        aside.replace(given.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
