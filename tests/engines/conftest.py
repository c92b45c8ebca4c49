import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from engines.servers_for_tests import Running, running


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Cumulative streams, as SGLang's default."""
    with running(tmp_path_factory.mktemp("engine"), "--max-running-requests", "16") as held:
        yield held


@pytest.fixture(scope="session")
def server(embedded: Running) -> Running:
    return embedded


@pytest.fixture(scope="session")
def incremental_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    arguments = ("--incremental-streaming-output", "--stream-interval", "7", "--chunked-prefill-size", "64")
    with running(tmp_path_factory.mktemp("incremental"), *arguments) as held:
        yield held


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as held:
        yield held


@pytest.fixture
async def client(server: Running, session: aiohttp.ClientSession) -> AsyncIterator[EngineClient]:
    """Starts from the first weights, unpaused and idle, whatever the test before did."""
    client = EngineClient(server.url, session)
    await client.abort_all()
    await client.resume()
    await client.update_weights(str(server.folder / "v1"), "v1")
    async with asyncio.timeout(60):
        yield client
