"""What the server says when it cannot start, and that it stops at once."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from models.models_for_tests import small_config, write_model

from engines.servers_for_tests import Running, start


@pytest.mark.parametrize("case", ["absent", "llama", "weights", "context", "port"])
def test_a_start_that_fails_says_why(tmp_path: Path, server: Running, case: str) -> None:
    model, arguments, said = server.folder / "v1", [], ""
    if case == "absent":
        model, said = tmp_path / "none", "config.json"
    elif case == "llama":
        model, said = tmp_path / "llama", "LlamaForCausalLM"
        write_model(model, small_config(), 0)
        text = (model / "config.json").read_text()
        (model / "config.json").write_text(text.replace("Qwen3ForCausalLM", "LlamaForCausalLM"))
    elif case == "weights":
        model, said = tmp_path / "torn", "cannot read weights"
        write_model(model, small_config(), 0)
        raw = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(raw[:1000])
    elif case == "context":
        arguments, said = ["--context-length", "100000"], "exceeds the model's 512"
    else:
        arguments, said = ["--port", str(server.port)], "choose another --port"
    process, _, log = start(model, tmp_path, *arguments)
    assert process.wait(60) in (1, 2)
    text = log.read_text()
    assert said in text
    assert "Traceback" not in text


def test_a_busy_server_stops_at_once(tmp_path: Path, server: Running) -> None:
    process, port_file, log = start(server.folder / "v1", tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        body = msgspec.json.encode({"input_ids": [1], "stream": True, "sampling_params": {"max_new_tokens": 500}})
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection = socket.create_connection(("127.0.0.1", int(port_file.read_text())))
        connection.sendall(head + body)
        assert connection.recv(1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(5) == 0
        assert time.monotonic() - began < 3
    finally:
        process.kill()


def test_a_server_may_die_with_its_parent(tmp_path: Path, server: Running) -> None:
    port_file = tmp_path / "port"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'asearch.engines.embedded', '--model-path', sys.argv[1],\n"
        "    '--port', '0', '--port-file', sys.argv[2], '--die-with-parent'], stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(server.folder / "v1"), str(port_file)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
