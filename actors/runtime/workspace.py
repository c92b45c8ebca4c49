"""The folder `runs/`: which runs there are, which are live, and the one broker that they share."""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from actors.runtime.broker import Broker, answers, find_broker, start_broker, sync_store
from actors.runtime.bus import Bus
from actors.runtime.platform import Platform
from actors.runtime.run_files import RUN_FILE, RunFile, read_run_file
from asearch.errors import AsearchError, InputError

BROKER_FOLDER = ".broker"
_BROKER_FILE, _LOCK_FILE = "broker.json", "lock"
STOP_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 45.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """A process by pid and start time: a pid alone may have been given to another program."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "Process":
        """The process that has this pid now; one that has ended already is not alive."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return cls(pid, 0.0)

    @classmethod
    def own(cls) -> "Process":
        """The process this runs in."""
        return cls.of(os.getpid())

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            found = psutil.Process(self.pid)
            return abs(found.create_time() - self.started) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    async def end(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL after the timeout."""
        for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)):
            if self.is_alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while self.is_alive:  # noqa: ASYNC110 -- it need not be a child: its end has no event
                        await asyncio.sleep(_POLL_S)


class BrokerUser(msgspec.Struct, frozen=True):
    """A run that needs the broker, and its supervisor."""

    run: str
    process: Process


class BrokerFile(msgspec.Struct, frozen=True):
    """Where the workspace's broker is, and who uses it."""

    url: str
    port: int
    process: Process
    users: list[BrokerUser]

    @classmethod
    def of(cls, broker: Broker) -> "BrokerFile":
        """A broker that was just started."""
        return cls(broker.url, broker.port, Process.of(broker.process.pid), [])


def is_live(content: RunFile) -> bool:
    """Whether the run's supervisor lives."""
    return Process(content.supervisor_pid, content.supervisor_started).is_alive


class Workspace:
    """The runs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def run_dir(self, run: str) -> Path:
        """The folder of a run."""
        return self.root / run

    def runs(self) -> list[RunFile]:
        """All runs with a readable run file, the newest last."""
        files = sorted(self.root.glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime)
        found: list[RunFile] = []
        for path in files:
            try:
                found.append(read_run_file(path.parent))
            except InputError:
                continue
        return found

    def live_runs(self) -> list[RunFile]:
        """Runs whose supervisor lives, the newest last."""
        return [content for content in self.runs() if is_live(content)]

    def next_name(self, recipe: str) -> str:
        """`{recipe}-{n}` with the least n that no run has."""
        taken = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set[str]()
        number = 1
        while f"{recipe}-{number}" in taken:
            number += 1
        return f"{recipe}-{number}"

    # --- the broker ---

    @property
    def broker_folder(self) -> Path:
        """Where the broker keeps its data, configuration and log."""
        return self.root / BROKER_FOLDER

    async def running_broker(self) -> BrokerFile | None:
        """The broker that runs for this workspace, None if there is none."""
        found = self._read_broker()
        return found if found is not None and found.process.is_alive and await answers(found.port) else None

    async def broker(self, platform: Platform, port: int = 0, run: str | None = None) -> tuple[str, Broker | None]:
        """The broker's url, and the broker itself if it had to be started. `release` ends the use of it.

        A run that is named keeps the broker alive until it releases it. Raises AsearchError if it runs on another port.
        """
        async with self._locked():
            running, started = await self.running_broker(), None
            if running is None:
                died = self._read_broker()
                users = [user for user in died.users if user.process.is_alive] if died is not None else []
                if died is not None and users and port == 0:
                    # Live runs look for it where it was; their supervisor is about to start it again.
                    port = died.port
                started = await start_broker(await self._broker_ground(), platform, port=port)
                running = msgspec.structs.replace(BrokerFile.of(started), users=users)
            elif port not in (0, running.port):
                raise AsearchError(f"this workspace's broker already runs on port {running.port}, not {port}")
            users = [user for user in running.users if user.process.is_alive]
            if run is not None:
                users.append(BrokerUser(run, Process.own()))
            self._write_broker(msgspec.structs.replace(running, users=users))
        return running.url, started

    async def revive_broker(self, platform: Platform) -> bool:
        """Start a broker that died again, on its port and its data; whether that was needed. Raises BusError."""
        async with self._locked():
            found = self._read_broker()
            if found is None or found.process.is_alive:
                return False
            started = await start_broker(self.broker_folder, platform, port=found.port)
            self._write_broker(msgspec.structs.replace(BrokerFile.of(started), users=found.users))
            return True

    async def restart_broker(self, platform: Platform) -> None:
        """Stop the broker, if it runs, and start it on its port and its data; for one that cannot write. Raises BusError."""
        async with self._locked():
            found = self._read_broker()
            if found is None:
                return
            await found.process.end(STOP_TIMEOUT_S)
            started = await start_broker(self.broker_folder, platform, port=found.port)
            self._write_broker(msgspec.structs.replace(BrokerFile.of(started), users=found.users))

    async def ensure_streams(self, bus: Bus) -> None:
        """Create or update a run's streams and queues, and make sure that a power cut does not take them away."""
        await bus.ensure_topology()
        await asyncio.to_thread(sync_store, self.broker_folder)

    async def release(self, broker: Broker | None, run: str) -> None:
        """End the use of the broker: the last live run stops it, and so does whoever started it for nobody else."""
        async with self._locked():
            found = self._read_broker()
            if found is None:
                return
            mine = BrokerUser(run, Process.own())
            others = [user for user in found.users if user != mine and user.process.is_alive]
            if others:
                self._write_broker(msgspec.structs.replace(found, users=others))
            elif broker is not None or mine in found.users:
                await self._stop_broker(found)

    async def stop_orphan(self) -> int | None:
        """Stop a broker that no live run uses, as a killed supervisor leaves it; its pid, None if there is none."""
        async with self._locked():
            found = self._read_broker()
            if found is None or not found.process.is_alive or any(user.process.is_alive for user in found.users):
                return None
            await self._stop_broker(found)
            return found.process.pid

    async def _broker_ground(self) -> Path:
        self.broker_folder.mkdir(parents=True, exist_ok=True)
        if await find_broker(self.broker_folder) is not None:
            raise AsearchError(
                f"a nats-server that nobody accounts for runs on {self.broker_folder}: find it with "
                f"`pgrep -af {self.broker_folder}` and end it"
            )
        return self.broker_folder

    async def _stop_broker(self, found: BrokerFile) -> None:
        await found.process.end(STOP_TIMEOUT_S)
        (self.broker_folder / _BROKER_FILE).unlink(missing_ok=True)

    def _read_broker(self) -> BrokerFile | None:
        try:
            return msgspec.json.decode((self.broker_folder / _BROKER_FILE).read_bytes(), type=BrokerFile)
        except (OSError, msgspec.DecodeError):
            return None

    def _write_broker(self, content: BrokerFile) -> None:
        aside = self.broker_folder / f".{_BROKER_FILE}.part"
        aside.write_bytes(msgspec.json.encode(content))
        aside.replace(self.broker_folder / _BROKER_FILE)

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncGenerator[None]:
        """Nobody else changes the broker meanwhile; the kernel unlocks it for a process that dies."""
        self.broker_folder.mkdir(parents=True, exist_ok=True)
        with (self.broker_folder / _LOCK_FILE).open("w") as lock:
            try:
                async with asyncio.timeout(LOCK_TIMEOUT_S):
                    while not _try_lock(lock.fileno()):  # noqa: ASYNC110 -- the holder is another process
                        await asyncio.sleep(_POLL_S)
            except TimeoutError:
                raise AsearchError(f"{lock.name} is held by another process for more than {LOCK_TIMEOUT_S:g} s") from None
            yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
