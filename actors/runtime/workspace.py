"""The folder `runs/`: which runs there are, which are live, and the one broker that they share."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from actors.runtime.broker import Broker, answers, start_broker
from actors.runtime.platform import Platform
from actors.runtime.run_files import RUN_FILE, RunFile, read_run_file
from asearch.errors import AsearchError, InputError

BROKER_FOLDER = ".broker"
_BROKER_FILE = "broker.json"


class BrokerFile(msgspec.Struct, frozen=True):
    """Where the workspace's broker is."""

    url: str
    port: int
    pid: int


@dataclass(frozen=True)
class Process:
    """A process by pid and start time: a pid alone may have been given to another program."""

    pid: int
    started: float

    @classmethod
    def own(cls) -> "Process":
        """The process this runs in."""
        return cls(os.getpid(), psutil.Process().create_time())

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            found = psutil.Process(self.pid)
            return abs(found.create_time() - self.started) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


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
        try:
            found = msgspec.json.decode((self.broker_folder / _BROKER_FILE).read_bytes(), type=BrokerFile)
        except (OSError, msgspec.DecodeError):
            return None
        return found if psutil.pid_exists(found.pid) and await answers(found.port) else None

    async def broker(self, platform: Platform, port: int = 0) -> tuple[str, Broker | None]:
        """The broker's url, and the broker itself if it had to be started: then the caller stops it."""
        running = await self.running_broker()
        if running is not None:
            if port not in (0, running.port):
                raise AsearchError(f"this workspace's broker already runs on port {running.port}, not {port}")
            return running.url, None
        self.broker_folder.mkdir(parents=True, exist_ok=True)
        started = await start_broker(self.broker_folder, platform, port=port)
        content = BrokerFile(started.url, started.port, started.process.pid)
        (self.broker_folder / _BROKER_FILE).write_bytes(msgspec.json.encode(content))
        return started.url, started

    async def release(self, broker: Broker | None, run: str) -> None:
        """Stop the broker unless another live run uses it."""
        if broker is not None and not any(content.run != run for content in self.live_runs()):
            await broker.stop()
            await asyncio.to_thread((self.broker_folder / _BROKER_FILE).unlink, missing_ok=True)
