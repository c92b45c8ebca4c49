"""One embedded server and its first weights for all tests of transfers."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from tests.engines.servers_for_tests import Running, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`v1` and `v2` of its folder are models of one shape."""
    with running(tmp_path_factory.mktemp("engine"), "--max-running-requests", "16") as held:
        yield held


@pytest.fixture
async def client(server: Running) -> AsyncIterator[EngineClient]:
    """Starts from the first weights."""
    async with aiohttp.ClientSession() as session:
        client = EngineClient(server.url, session)
        await client.abort_all()
        await client.resume()
        await client.update_weights(str(server.folder / "v1"), "v1")
        async with asyncio.timeout(100):
            yield client
