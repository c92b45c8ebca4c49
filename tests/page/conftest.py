"""A real browser, and viewers in processes of their own that serve a recorded run."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from actors.runtime.broker import Broker, start_broker
from actors.runtime.bus import Bus
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import read_url
from tests.page.recorded import append_run, make_run_dir

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
READY_S = 20.0
OTHER = "other"
"""A run to compare with."""
REPORT = """
addEventListener("securitypolicyviolation", (event) =>
    console.error("policy violated", event.violatedDirective, event.blockedURI));
"""


@dataclass
class Served:
    """A run on a broker, and the viewer process that shows it."""

    root: Path
    run: str
    broker: Broker
    bus: Bus
    live: bool
    folder: Path = field(init=False)
    viewer: asyncio.subprocess.Process | None = None

    def __post_init__(self) -> None:
        self.folder = make_run_dir(self.root, self.run, self.broker.url, live=self.live)

    @property
    def url(self) -> str:
        """Of the page, without a slash at the end."""
        return read_url(self.folder).rstrip("/")

    def at(self, *parts: str) -> str:
        """The address of a view of the run."""
        return "/".join((self.url, "runs", self.run, *parts))

    async def start_viewer(self) -> None:
        """Start the actor as a supervisor would; returns when it serves."""
        log = (self.folder / "logs" / "viewer-0.log").open("ab")
        self.viewer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "actors.cli.main", "actor", "viewer", "--run", str(self.folder), stdout=log, stderr=log
        )
        log.close()
        async with asyncio.timeout(READY_S):
            while not await self._serves():
                assert self.viewer.returncode is None, (self.folder / "logs" / "viewer-0.log").read_text()
                await asyncio.sleep(0.05)

    async def _serves(self) -> bool:
        _, _, port = self.url.rpartition(":")
        if not port.isdecimal():
            return False
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", int(port))
        except OSError:
            return False
        writer.close()
        return True

    async def kill_viewer(self) -> None:
        """Kill it as a crash would."""
        assert self.viewer is not None
        if self.viewer.returncode is None:
            self.viewer.kill()
            await self.viewer.wait()

    async def kill_broker(self) -> None:
        """Kill the broker."""
        self.broker.process.kill()
        await self.broker.process.wait()

    async def start_broker(self) -> None:
        """Start the broker again on its port and store."""
        self.broker = await start_broker(self.broker.folder, SystemPlatform(), port=self.broker.port)

    async def close(self) -> None:
        """End the processes."""
        await self.kill_viewer()
        await self.bus.close()
        await self.broker.stop()


async def serve(root: Path, run: str, *, live: bool) -> Served:
    """A broker with the streams of an empty run; no viewer yet."""
    broker = await start_broker(root / ".broker", SystemPlatform())
    bus = await connect(broker.url, run, "driver-0", SystemPlatform())
    await bus.ensure_topology()
    return Served(root, run, broker, bus, live)


async def add_run(held: Served, run: str) -> None:
    """A further run of the same workspace, recorded the same."""
    bus = await connect(held.broker.url, run, "driver-0", SystemPlatform())
    await bus.ensure_topology()
    await append_run(bus)
    await bus.close()
    make_run_dir(held.root, run, held.broker.url, live=False)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def shown(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """The recorded run, ended, with its viewer: only to be looked at."""
    held = await serve(tmp_path_factory.mktemp("shown"), "recorded", live=False)
    try:
        await append_run(held.bus)
        await add_run(held, OTHER)
        await held.start_viewer()
        yield held
    finally:
        await held.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The system's Chromium. Nothing is downloaded."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        reason = f"no Chromium on the path (looked for {', '.join(NAMES)}); install it: sudo apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        await browser.close()


class Reader:
    """One who reads the page: tabs of one browser profile, and everything that the browser complained about."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.complaints: list[str] = []
        self.may_complain: Callable[[str], bool] = lambda _: False
        """Which complaints are as they should be."""

    async def open(self, address: str) -> Page:
        """Open a tab."""
        page = await self.context.new_page()
        await page.add_init_script(REPORT)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.set_default_timeout(10_000)
        await page.goto(address)
        return page

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def check(self) -> None:
        """Nothing was complained about."""
        assert [each for each in self.complaints if not self.may_complain(each)] == []


NewReader = Callable[..., "asyncio.Future[Reader]"]


@pytest_asyncio.fixture(loop_scope="session")
async def new_reader(chromium: Browser) -> AsyncIterator[NewReader]:
    """Makes readers with a width and a colour scheme; at the end none may have found an error or a violated policy."""
    made: list[Reader] = []

    async def make(width: int = 1440, height: int = 900, scheme: str = "light") -> Reader:
        context = await chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
        )
        made.append(Reader(context))
        return made[-1]

    yield make  # type: ignore[misc]
    for reader in made:
        await reader.context.close()
    for reader in made:
        reader.check()
