"""The corpus server as a process, over real HTTP."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from corpus_for_tests import PAGE_HTML, ROWS, start_server, wait_for_port, write_corpus


async def post(url: str, path: str, body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as response:
        return response.status, await response.json()


async def get(url: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(aiohttp.client.URL(url + path, encoded=True)) as response:
        return response.status, await response.text()


async def test_retrieve_has_the_shape_of_search_r1_with_scores(corpus_url: str):
    status, reply = await post(corpus_url, "/retrieve", {"queries": ["mother of Zed", ""], "topk": 2, "return_scores": True})
    assert status == 200
    assert set(reply) == {"result"}
    first, empty = reply["result"]
    assert empty == []
    assert set(first[0]) == {"document", "score"}
    assert first[0]["document"] == ROWS[1]
    assert first[0]["score"] > first[1]["score"] > 0


async def test_retrieve_without_scores_returns_documents_and_defaults_to_three(corpus_url: str):
    _, reply = await post(corpus_url, "/retrieve", {"queries": ["of"]})
    (documents,) = reply["result"]
    assert len(documents) == 3
    assert all(set(document) == {"id", "contents", "url", "title"} for document in documents)


async def test_null_topk_is_the_default(corpus_url: str):
    status, reply = await post(corpus_url, "/retrieve", {"queries": ["Marn"], "topk": None})
    assert status == 200
    assert reply["result"][0][0] == {"id": "0", "contents": ROWS[0]["contents"], "url": "/page/0", "title": "Marn"}


@pytest.mark.parametrize(
    "body",
    [
        {"queries": "one"},
        {"queries": [1]},
        {},
        [],
        {"queries": ["x"], "topk": 0},
        {"queries": ["x"], "topk": 1000},
        {"queries": ["x" * 20_000]},
        {"queries": ["x"] * 1000},
    ],
)
async def test_bad_requests_are_refused_in_words(corpus_url: str, body: Any):
    status, reply = await post(corpus_url, "/retrieve", body)
    assert status == 400
    assert reply["error"]


async def test_too_large_a_request_is_refused(corpus_url: str):
    status, _ = await post(corpus_url, "/retrieve", {"queries": ["x" * (2 << 20)]})
    assert status == 413


async def test_access_knows_own_urls_page_paths_and_index_php(corpus_url: str):
    urls = [
        "http://wiki.example/zed",
        "/page/0",
        f"{corpus_url}/page/0",
        "https://w/index.php/Gul",
        "https://w/Hov",
        "http://elsewhere.example/page/0",
        "nothing",
        "http://[",
    ]
    status, reply = await post(corpus_url, "/access", {"urls": urls})
    zed, marn, marn_absolute, gul, hov, *nothing = reply["result"]
    assert status == 200
    assert (zed["title"], zed["contents"]) == ("Zed", "Zed\nThe mother of Zed is Ana.")
    assert zed["url"] == urls[0]
    assert marn["contents"] == marn_absolute["contents"] == "Marn\nMarn is a baker in Ulto."
    assert gul["contents"] == "Gul\nFirst part of Gul.\nSecond part of Gul."
    assert hov["contents"] == "Full page of Hov.\nIt has two lines."
    assert nothing == [None, None, None]


async def test_pages_are_the_file_or_rendered_and_escaped(corpus_url: str):
    assert await get(corpus_url, "/page/3") == (200, PAGE_HTML)
    status, page = await get(corpus_url, "/page/a%2Fb%20%3F")
    assert status == 200
    assert "<h1>Odd &lt;name&gt;</h1>" in page
    assert "<p>Odd &amp; &quot;quoted&quot; &lt;b&gt;text&lt;/b&gt;.</p>" in page


@pytest.mark.parametrize("path", ["/page/none", "/page/..%2Fcorpus", "/page/%00", "/page/", "/nope"])
async def test_other_paths_are_not_found(corpus_url: str, path: str):
    status, _ = await get(corpus_url, path)
    assert status == 404


async def test_health_counts_passages(corpus_url: str):
    status, text = await get(corpus_url, "/health")
    assert (status, text) == (200, f'{{"status":"ok","passages":{len(ROWS)}}}')


def test_a_taken_port_is_said_and_sigterm_ends_quickly(tmp_path: Path):
    corpus = write_corpus(tmp_path)
    first = start_server("--corpus", str(corpus), "--port-file", str(tmp_path / "port"))
    try:
        port = wait_for_port(first, tmp_path / "port")
        second = start_server("--corpus", str(corpus), "--port", str(port))
        _, error = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"Port {port} on 127.0.0.1 is already in use" in error
        assert "Traceback" not in error
        begin = time.monotonic()
        first.send_signal(signal.SIGTERM)
        assert first.wait(10) == 0
        assert time.monotonic() - begin < 5
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "no passages"),
        (b'{"id": "1", "contents": "x"}\n{"id": 2}\n', ":2:"),
    ],
)
def test_a_bad_corpus_is_said_without_a_traceback(tmp_path: Path, content: bytes | None, message: str):
    corpus = tmp_path / "corpus.jsonl"
    if content is not None:
        corpus.write_bytes(content)
    process: subprocess.Popen[str] = start_server("--corpus", str(corpus))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in error
    assert "Traceback" not in error
