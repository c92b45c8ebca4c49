from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from engines.contract.embedded_server import EmbeddedServer
from engines.contract.served import Served
from engines.contract.sglang_server import SglangServer
from engines.servers_for_tests import Running, write_folders


@pytest.fixture(scope="session", params=["embedded", pytest.param("sglang", marks=pytest.mark.sglang)])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here runs once per kind of server."""
    return request.param


@pytest.fixture(scope="session")
def sglang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SglangServer]:
    folder = tmp_path_factory.mktemp("sglang")
    server = SglangServer(folder, write_folders(folder))
    yield server
    server.kill()


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Served:
    """Cumulative streams; started from `v1`."""
    if kind == "sglang":
        held: SglangServer = request.getfixturevalue("sglang")
        return held.serving("cumulative", "v1")
    running: Running = request.getfixturevalue("embedded")
    return Served(kind, running.url, running.folder, running.config)


@pytest.fixture(scope="session")
def restarted_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("restarted")
    server = EmbeddedServer(folder, write_folders(folder))
    yield server
    server.kill()


@pytest.fixture
def other(kind: str, request: pytest.FixtureRequest) -> SglangServer | EmbeddedServer:
    """A server that may be killed and started again."""
    return request.getfixturevalue("sglang" if kind == "sglang" else "restarted_embedded")


@pytest.fixture
async def client(server: Served, session: aiohttp.ClientSession) -> AsyncIterator[EngineClient]:
    """Starts from the first weights, unpaused and idle, whatever the test before did."""
    client = EngineClient(server.url, session)
    await reset(client, server.model("v1"))
    yield client


async def reset(client: EngineClient, v1: Path) -> None:
    await client.abort_all()
    await client.resume()
    await client.pause("retract")
    await client.update_weights(str(v1), "v1")
    await client.resume()
