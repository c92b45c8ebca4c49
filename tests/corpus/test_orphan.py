"""A corpus server that was asked to ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "asearch.corpus", "--corpus", sys.argv[1], "--port-file", sys.argv[2],
                          "--die-with-parent"])
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_server_ends_with_its_parent(tmp_path: Path) -> None:
    corpus, port_file = tmp_path / "corpus.jsonl", tmp_path / "port"
    corpus.write_text('{"id": "1", "contents": "a passage"}\n')
    command = [sys.executable, "-c", PARENT, str(corpus), str(port_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        deadline_s = time.monotonic() + 30.0
        while not port_file.is_file():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline_s = time.monotonic() + 10.0
    while alive(server):
        assert time.monotonic() < deadline_s, "the server outlived its parent"
        time.sleep(0.05)
