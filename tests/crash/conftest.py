"""A broker, and runs on it whose outcomes are all there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from actors.runtime.broker import Broker
from asearch.configuration.settings import Settings
from tests.crash.prefilled import Prefilled
from tests.runtime.conftest import broker as broker  # a fixture
from tests.training.material import model_config, write_model

MakeRun = Callable[[str, Settings], Awaitable[Prefilled]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return write_model(tmp_path_factory.mktemp("model") / "hf", model_config())


@pytest_asyncio.fixture
async def make_run(broker: Broker, tiny_model: Path, tmp_path: Path) -> AsyncIterator[MakeRun]:
    """Makes runs by name; their streams are deleted at the end."""
    made: list[Prefilled] = []

    async def make(name: str, settings: Settings) -> Prefilled:
        run = Prefilled(broker.url, tmp_path / name, settings, tiny_model)
        made.append(run)
        return await run.fill()

    yield make
    for run in made:
        await run.bus.delete_topology()
        await run.bus.close()
