"""One inference server as its engine sees it: started or attached to, watched, and started again within limits."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import structlog

from actors.runtime.platform import Platform, Process
from actors.runtime.supervisor import Intensity, tail
from asearch.configuration.engine import EngineSettings
from asearch.engines.client import EngineClient
from asearch.engines.launch import Launch, Removable
from asearch.errors import EngineError

STOP_GRACE_S = 5.0
"""From SIGTERM to SIGKILL: a server has nothing to lose, what it has not streamed is asked of another one."""
PROBE_S = 0.1
PROBE_TIMEOUT_S = 5.0
ANNOUNCE_S = 10.0
N_LOG_LINES = 15
MAX_FAILED_CHECKS = 2
"""Health checks in a row without an answer after which a server is taken for hung."""
RESTART_DELAY_S = 0.5
KEEP_ALIVE_S = 2.0
"""Idle connections are closed by us first: SGLang does so after 5 s, and a request on one that it is closing is lost."""
MAX_LINE_CHARS = 300
"""Of a line of the log in an error: SGLang prints all its settings as one."""


class InferenceProcess:
    """Keeps one server. It is ours if `launch` is given, else it runs already at `url` and is only attached to."""

    def __init__(
        self,
        platform: Platform,
        settings: EngineSettings,
        log_path: Path,
        launch: Callable[[], Launch] | None,
        url: str = "",
        is_excused: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`launch` makes the command of each start. While `is_excused`, health checks do not count: a paused server is silent.

        `say` is told what a start waits for, from time to time.
        """
        self._platform = platform
        self._settings = settings
        self._log_path = log_path
        self._launch = launch
        self._url = url
        self._is_excused = is_excused
        self._say = say
        self._session: aiohttp.ClientSession | None = None
        self._process: Process | None = None
        self._client: EngineClient | None = None
        self._launched: Launch | None = None
        self._left: Sequence[Removable] = ()
        self._intensity = Intensity(settings.max_restarts, settings.restart_period_s)
        self._log = structlog.get_logger()
        self.n_starts = 0

    async def start(self) -> EngineClient:
        """Start it and wait until it is ready. Raises EngineError with the end of its log."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S))
        self.n_starts += 1
        begun_s = self._platform.monotonic()
        launched = None
        if self._launch is not None:
            launched = self._launch()
            if launched.port_file is not None:
                launched.port_file.unlink(missing_ok=True)
            self._process = await self._platform.spawn(launched.argv, env=launched.env, log_path=self._log_path)
            self._launched = launched
        self._client = await self._until_ready(launched, begun_s)
        if launched is not None and self._process is not None:
            self._left = launched.left_by(self._process.pid)
        if launched is None:
            await self._client.resume()  # an engine that died may have left it paused
            await self._client.check_logprobs()
        self._log.info("inference server is ready", after_s=round(self._platform.monotonic() - begun_s, 1))
        return self._client

    async def failure(self) -> str:
        """Return once the server has failed, with what happened: it ended, or it hangs."""
        watches = [asyncio.create_task(self._hang(), name="health")]
        if self._process is not None:
            watches.append(asyncio.create_task(self._end(self._process), name="end"))
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for watch in watches:
                watch.cancel()

    async def restart(self, why: str) -> EngineClient:
        """Start the server again, until it is ready. Raises EngineError when it has failed too often."""
        while True:
            self._log.warning("inference server failed", why=why, n_starts=self.n_starts)
            if self._intensity.exceeded(self._platform.monotonic()):
                raise EngineError(
                    f"the inference server failed {self._intensity.n_failures} times in {self._settings.restart_period_s:g} s; "
                    f"last: {why}; {self.log_tail()}"
                )
            await self._kill()
            await self._platform.sleep(RESTART_DELAY_S)
            try:
                return await self.start()
            except EngineError as error:
                why = str(error).partition(";")[0]

    async def stop(self) -> None:
        """End the server if it is ours, with every process that it has started; one that was attached to runs on."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await self._process.wait()
        await self._kill()

    def log_tail(self) -> str:
        """The last lines of the server's log, for an error message."""
        if self._launch is None:
            return f"see the log of the server at {self._url}"
        lines = tail(self._log_path, N_LOG_LINES).splitlines()
        return "\n".join([f"the end of {self._log_path}:", *(line[:MAX_LINE_CHARS] for line in lines)])

    async def _until_ready(self, launched: Launch | None, begun_s: float) -> EngineClient:
        limit_s, told_s = self._settings.start_limit_s, begun_s
        while True:
            if self._process is not None and self._process.returncode is not None:
                status = self._process.returncode
                raise EngineError(f"the inference server did not start (status {status}); {self.log_tail()}")
            url = self._url if launched is None else launched.url()
            name = None if launched is None else launched.name
            if url is not None and (client := await self._answering(url, name)) is not None:
                return client
            now_s = self._platform.monotonic()
            if now_s - begun_s > limit_s:
                where = f" at {self._url}" if launched is None else ""
                raise EngineError(f"no server{where} after {limit_s:g} s (engine.start_timeout_s); {self.log_tail()}")
            if now_s - told_s > ANNOUNCE_S:
                told_s = now_s
                where = f"at {self._url}" if launched is None else f"logs/{self._log_path.name}"
                self._say(f"the inference server, for {now_s - begun_s:.0f} s now ({where})")
            await self._platform.sleep(PROBE_S)

    async def _answering(self, url: str, name: str | None) -> EngineClient | None:
        """A client of the server if it is ready to generate; not of another one, which has taken the port meanwhile."""
        if self._session is None:
            raise EngineError("the engine does not run")
        client = EngineClient(url, self._session)
        # One that was attached to may have been left paused by an engine that died: it is ready once it has a model.
        is_ready = client.is_ready if self._launch is not None else client.has_model
        if not await is_ready(PROBE_TIMEOUT_S):
            return None
        if name is None:
            return client
        with contextlib.suppress(EngineError):
            return client if (await client.model_info()).get("weight_version") == name else None
        return None

    async def _end(self, process: Process) -> str:
        status = await process.wait()
        return f"the inference server ended with status {status}"

    async def _hang(self) -> str:
        """Return once the server has left MAX_FAILED_CHECKS health checks in a row without an answer."""
        settings, n_failed = self._settings, 0
        while n_failed < MAX_FAILED_CHECKS:
            await self._platform.sleep(settings.health_interval_s)
            client = self._client
            is_well = client is not None and await client.health(settings.health_timeout_s)
            n_failed = 0 if is_well or self._is_excused() else n_failed + 1
        return f"the inference server did not say {n_failed} times in a row that it is well"

    async def _kill(self) -> None:
        """SIGKILL to the whole process group, and what it has left is taken away.

        The server leads the group, as every process that a platform starts.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if self._launched is not None:
            # It may never have been ready, or have made more since.
            self._left = list(dict.fromkeys([*self._left, *self._launched.left_by(process.pid)]))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        for each in self._left:
            each.remove()
        self._left = ()
