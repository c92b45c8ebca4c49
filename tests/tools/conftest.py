"""A corpus server in this process, and a client of it over real HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from servers_for_tests import client_of, listening

from asearch.corpus.server import CorpusApp
from asearch.corpus.store import CorpusStore
from asearch.tools.client import CorpusClient

CORPUS = (
    '{"id": "0", "contents": "\\"Marn\\"\\nMarn is a baker in Ulto."}\n'
    '{"id": "1", "contents": "The mother of Zed is Ana.", "url": "http://wiki.example/zed", "title": "Zed"}\n'
    '{"id": "odd/ id", "contents": "Odd one."}\n'
    '{"id": "2", "contents": "Looks like a path.", "url": "/page/elsewhere"}\n'
)


@pytest.fixture
async def corpus(tmp_path: Path) -> AsyncIterator[CorpusClient]:
    """A client of a real corpus server."""
    path = tmp_path / "corpus.jsonl"
    path.write_text(CORPUS)
    runner, url = await listening(CorpusApp(CorpusStore.load(path)).application())
    async with aiohttp.ClientSession() as session:
        yield client_of(url, session)
    await runner.cleanup()
