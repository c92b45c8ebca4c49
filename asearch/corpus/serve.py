"""Run the corpus server in this process until it is told to stop."""

import asyncio
import errno
import signal
import sys
from pathlib import Path

from aiohttp import web

from asearch.corpus.server import CorpusApp
from asearch.corpus.store import CorpusStore
from asearch.errors import ConfigError

SHUTDOWN_S = 1.0


async def serve(store: CorpusStore, host: str, port: int, port_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT. Port 0 takes a free port; `port_file` gets the port's number once requests are answered.

    Raises ConfigError where the address cannot be used.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    app = CorpusApp(store)
    runner = web.AppRunner(app.application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        bound = await _listen(runner, host, port)
        app.own_hosts = frozenset(f"{name}:{bound}" for name in (host, "127.0.0.1", "localhost"))
        if port_file is not None:
            _write_port(port_file, bound)
        sys.stdout.write(f"corpus server: {len(store.passages)} passages on http://{host}:{bound}\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} on {host} is already in use. Stop the program that holds it, or choose another (0: a free one)."
            ) from error
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another address.") from error
    except OverflowError as error:
        raise ConfigError(f"{port} is not a port number. Choose one in 0..65535.") from error
    return int(runner.addresses[0][1])


def _write_port(port_file: Path, port: int) -> None:
    aside = port_file.with_name(f"{port_file.name}.part")
    aside.write_text(f"{port}\n")
    aside.replace(port_file)
