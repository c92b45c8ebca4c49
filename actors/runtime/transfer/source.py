"""The trainer's side of pulling: a child process that serves what has been announced, with a token from the run's folder."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import structlog

from actors.runtime.platform import Platform, Process
from asearch.configuration.settings import TransferSettings
from asearch.errors import TransferError
from asearch.weights.ranges import Origin
from asearch.weights.serving import announce, read_lately
from schemas.records import WeightManifest

TOKEN_FILE = "weights.token"  # noqa: S105 -- a name
TOKEN_VARIABLE = "ASEARCH_WEIGHTS_TOKEN"  # noqa: S105 -- a name
START_TIMEOUT_S = 20.0
MAX_RESTARTS = 20
RESTART_S = 0.5
READING_S = 5.0
"""A folder of which nothing has been sent for so long is read by nobody."""
MAX_WAIT_S = 600.0
"""How long one is kept because it is read."""


class WeightSource:
    """Serves the folders below `root` that `announce` has named; started again, at the same address, when it dies."""

    def __init__(self, platform: Platform, root: Path, run_dir: Path, name: str, settings: TransferSettings) -> None:
        self._platform = platform
        self._root = root
        self._run_dir = run_dir
        self._name = name
        self._settings = settings
        self._log_path = run_dir / "logs" / f"{name}-source.log"
        # A trainer that was taken for dead may live beside its successor of the same name.
        self._stem = f"{name}-source-{os.getpid()}"
        self._list_path = run_dir / f"{self._stem}.announced"
        self._process: Process | None = None
        self._stopping = False
        self._port = 0
        self._kept: list[WeightManifest] = []
        self._waiting: dict[str, float] = {}
        """The folder that is kept for a reader alone, and since when."""

    async def start(self) -> None:
        """Start the process. Raises TransferError with the end of its log."""
        await asyncio.to_thread(self._root.mkdir, 0o700, True, True)
        await asyncio.to_thread(self._prepare_files)
        port_file = self._run_dir / f"{self._stem}.port"
        port_file.unlink(missing_ok=True)
        self._process = await self._platform.spawn(
            [
                *(sys.executable, "-m", "asearch.weights.serving", "--root", str(self._root)),
                *("--announced", str(self._list_path)),
                *("--bind", self._settings.bind, "--port", str(self._port), "--port-file", str(port_file)),
                *("--token-file", str(self._run_dir / TOKEN_FILE), "--die-with-parent"),
            ],
            log_path=self._log_path,
        )
        deadline_s = self._platform.monotonic() + START_TIMEOUT_S
        while not port_file.is_file():
            if self._process.returncode is not None or self._platform.monotonic() > deadline_s:
                raise TransferError(f"the weights are not served; {self._log_tail()}")
            await self._platform.sleep(0.02)
        self._port = int(port_file.read_text())

    async def watch(self) -> None:
        """Start the process again whenever it ends, until `stop`. Raises TransferError when it ends too often."""
        for _ in range(MAX_RESTARTS):
            assert self._process is not None  # noqa: S101
            status = await self._process.wait()
            if self._stopping:
                return
            structlog.get_logger().warning("the source of weights ended", status=status)
            await self._platform.sleep(RESTART_S)
            if self._stopping:
                return
            await self.start()
        raise TransferError(f"the source of weights ended {MAX_RESTARTS} times; {self._log_tail()}")

    @property
    def url(self) -> str:
        """Where engines find it."""
        address = self._settings.address or self._settings.bind
        return f"http://{f'[{address}]' if ':' in address else address}:{self._port}"

    async def offer(self, manifest: WeightManifest, keep: int) -> WeightManifest:
        """Let a described folder be pulled, and of the older ones so many that they are `keep` in all.

        Returns what is to be announced.
        """
        every = [*(each for each in self._kept if each.path != manifest.path), manifest]
        self._kept = [*await asyncio.to_thread(self._under_way, every[:-keep]), *every[-keep:]]
        await asyncio.to_thread(announce, self._list_path, self._kept)
        return msgspec.structs.replace(manifest, source=self.url)

    @property
    def kept(self) -> list[str]:
        """Names of the folders that may be pulled."""
        return [Path(each.path).name for each in self._kept]

    def _under_way(self, older: list[WeightManifest]) -> list[WeightManifest]:
        """The oldest of these that somebody reads, for a while: a pull that takes longer than `keep` versions would never end."""
        now_s, now = self._platform.monotonic(), self._platform.now_ns() / 1e9
        read = read_lately(self._list_path)
        for each in older:
            name = Path(each.path).name
            since_s = self._waiting.get(name, now_s)
            if now - read.get(name, 0.0) < READING_S and now_s - since_s < MAX_WAIT_S:
                self._waiting = {name: since_s}
                return [each]
        return []

    async def stop(self) -> None:
        """End the process."""
        self._stopping = True
        await asyncio.to_thread(self._remove_files)
        if self._process is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(5.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _prepare_files(self) -> None:
        """The token, once for the run; what killed trainers have left is deleted."""
        for path in self._run_dir.glob(f"{self._name}-source-*"):
            if not path.name.startswith(self._stem + "."):
                path.unlink(missing_ok=True)
        path = self._run_dir / TOKEN_FILE
        if path.is_file():
            return
        aside = path.with_name(f".{path.name}.part")
        aside.unlink(missing_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(self._platform.new_id() + self._platform.new_id())
        aside.replace(path)

    def _remove_files(self) -> None:
        for path in self._run_dir.glob(f"{self._stem}.*"):
            path.unlink(missing_ok=True)

    def _log_tail(self) -> str:
        text = self._log_path.read_text(errors="replace") if self._log_path.is_file() else ""
        return f"the end of {self._log_path}:\n" + "\n".join(text.splitlines()[-15:])


def origin(url: str, run_dir: Path, timeout_s: float) -> Origin:
    """A source's address with the token: of the environment, else of the run's folder. Raises TransferError."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        try:
            token = (run_dir / TOKEN_FILE).read_text().strip()
        except OSError as error:
            raise TransferError(f"{error.filename} cannot be read, and {TOKEN_VARIABLE} is not set: {error.strerror}") from error
    return Origin(url, token, timeout_s)
