"""A rank process on the other end of a socket pair, for tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from schemas.framing import read_frame, write_frame
from schemas.local import Command, RankReady, Reply, StopRank, encoder, reply_decoder

ROOT = Path(__file__).parents[2]


class RankProcess:
    """Starts a rank, waits for `RankReady`, and asks."""

    def __init__(self, log: Path, timeout_s: float = 120.0) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout_s)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asearch.training.rank", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
            )
        theirs.close()
        self.sock = ours
        ready = self.receive()
        assert isinstance(ready, RankReady)
        self.ready = ready

    def send(self, data: bytes) -> None:
        write_frame(self.sock, data)

    def receive(self) -> Reply:
        frame = read_frame(self.sock)
        assert frame is not None, "the rank closed the channel"
        return reply_decoder.decode(frame)

    def ask(self, command: Command) -> Reply:
        self.send(encoder.encode(command))
        return self.receive()

    def stop(self) -> int:
        self.send(encoder.encode(StopRank()))
        return self.process.wait(timeout=20)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=20)
        self.sock.close()
