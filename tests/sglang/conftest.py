from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from asearch.engines.sglang.launch import interpreter
from asearch.errors import ConfigError
from tests.actors.conftest import stage as stage  # a fixture
from tests.runtime.conftest import broker as broker  # a fixture
from tests.sglang.serving import SETTINGS, Server, write_models


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    """SGLang is there."""
    try:
        interpreter(SETTINGS)
    except ConfigError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("sglang"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    held = Server(models)
    try:
        held.wait_ready()
        yield held
        assert held.process.poll() is None, held.log.read_text(errors="replace")[-4000:]
    finally:
        held.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[EngineClient]:
    """Starts from the first weights, unpaused and idle, whatever the test before did."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)) as session:
        client = EngineClient(server.url, session)
        await client.abort_all()
        await client.resume()
        await client.update_weights(str(server.folder / "v1"), "v1")
        yield client
