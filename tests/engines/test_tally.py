"""What a server counts outlives it, and what it streams after a while is not lost with it."""

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from asearch.engines.client import EngineClient
from asearch.engines.embedded.tally import Tally, read_tally
from asearch.errors import EngineError
from engines.servers_for_tests import running


def test_a_count_goes_on_in_the_next_life_whatever_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "tallies" / "engine-0"
    assert read_tally(path) == 0
    Tally(path).write(7)
    assert read_tally(path) == 7
    again = Tally(path)
    assert read_tally(path) == 7
    again.write(5)
    assert read_tally(path) == 12
    path.write_bytes(b"torn")
    assert read_tally(path) == 0
    Tally(path).write(1)
    assert read_tally(path) == 1


async def test_a_killed_server_loses_little_and_its_count_knows_how_much(tmp_path: Path) -> None:
    """64 tokens would be streamed at once; with 100 ms a step there would be none for six seconds."""
    tally = tmp_path / "tally"
    arguments = ("--stream-interval", "64", "--stream-seconds", "0.3", "--incremental-streaming-output")
    n_streamed = n_chunks = 0
    # The helper wants servers that live to the end.
    with (
        pytest.raises(AssertionError),
        running(tmp_path, *arguments, "--step-delay-ms", "50", "--tally", str(tally)) as server,
    ):
        async with aiohttp.ClientSession() as session, asyncio.timeout(30.0):
            with pytest.raises(EngineError):
                params = {"temperature": 1.0, "max_new_tokens": 60, "ignore_eos": True, "sampling_seed": 1}
                chunks = EngineClient(server.url, session).generate([1, 2, 3], params, rid="r", timeout_s=20.0)
                async for chunk in chunks:
                    n_streamed, n_chunks = n_streamed + len(chunk.ids), n_chunks + 1
                    if n_chunks == 3:
                        server.process.send_signal(signal.SIGKILL)
        n_sampled = read_tally(tally)
    assert 3 <= n_chunks <= 4
    assert 0 <= n_sampled - n_streamed <= 10
    assert n_streamed <= 30
