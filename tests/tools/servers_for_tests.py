"""Servers on free ports and clients with short pauses."""

import asyncio
import time

import aiohttp
from aiohttp import web

from asearch.tools.client import CorpusClient
from asearch.tools.limits import ClientLimits


async def listening(app: web.Application) -> tuple[web.AppRunner, str]:
    """A running server of an application on a free port, and its base url."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def client_of(url: str, session: aiohttp.ClientSession, **limits: float) -> CorpusClient:
    """A client with short pauses."""
    chosen = ClientLimits(**{"backoff_s": 0.001, "timeout_s": 5.0, **limits})  # type: ignore[arg-type]
    return CorpusClient(url, session, sleep=asyncio.sleep, now_ns=time.monotonic_ns, limits=chosen)
