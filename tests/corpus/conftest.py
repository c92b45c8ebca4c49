"""A real corpus server process for this folder's tests."""

import signal
import subprocess
from collections.abc import Iterator

import pytest
from corpus_for_tests import start_server, wait_for_port, write_corpus


@pytest.fixture(scope="session")
def corpus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base url of a running server."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = write_corpus(folder)
    port_file = folder / "port"
    process = start_server("--corpus", str(corpus), "--pages", str(folder / "webpages.jsonl"), "--port-file", str(port_file))
    try:
        yield f"http://127.0.0.1:{wait_for_port(process, port_file)}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
