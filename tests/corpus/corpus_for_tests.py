"""A corpus in files, and the corpus server as a process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROWS = [
    {"id": "0", "contents": '"Marn"\nMarn is a baker in Ulto.'},
    {"id": "1", "contents": "The mother of Zed is Ana.", "url": "http://wiki.example/zed", "title": "Zed"},
    {"id": "a/b ?", "contents": '"Odd <name>"\nOdd & "quoted" <b>text</b>.'},
    {"id": "3", "contents": "Only a pointer.", "title": "Pola"},
    {"id": "4", "contents": "First part of Gul.", "url": "https://w/index.php?title=Gul", "title": "Gul"},
    {"id": "5", "contents": "Second part of Gul.", "url": "https://w/index.php?title=Gul", "title": "Gul"},
    {"id": "6", "contents": "Snippet of Hov.", "url": "https://w/Hov", "title": "Hov"},
]
PAGE_HTML = (
    "<html><head><title>Pola</title></head><body><nav><a href='/'>Home</a></nav><h1>Pola</h1>"
    "<p>The father of Pola is Rik.</p><p>Pola keeps bees.</p></body></html>"
)


def write_corpus(folder: Path) -> Path:
    """`corpus.jsonl`, `pages/` and `webpages.jsonl` in a folder."""
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "pages").mkdir()
    (folder / "pages" / "3.html").write_text(PAGE_HTML)
    page = {"url": "https://w/Hov", "contents": "Full page of Hov.\nIt has two lines."}
    (folder / "webpages.jsonl").write_text(json.dumps(page) + "\n")
    return corpus


def start_server(*arguments: str) -> "subprocess.Popen[str]":
    """`python -m asearch.corpus` with these arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "asearch.corpus", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_port(process: "subprocess.Popen[str]", port_file: Path) -> int:
    """The port that the server wrote; fails with its errors if it ends first."""
    deadline = time.monotonic() + 60
    while not port_file.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the corpus server did not start within 60 s"
        time.sleep(0.05)
    return int(port_file.read_text())
