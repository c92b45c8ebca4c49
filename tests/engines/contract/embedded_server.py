"""The embedded server as a process that may be killed and started again."""

import subprocess
from pathlib import Path

from asearch.models.config import ModelConfig
from engines.contract.served import Served
from engines.servers_for_tests import start, wait_for_port


class EmbeddedServer:
    """At most one process at a time."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder, self._config = folder, config
        self._process: subprocess.Popen[bytes] | None = None
        self._flavour = ("", "")
        self._served = Served("embedded", "", folder, config)

    def serving(self, streams: str, version: str) -> Served:
        """The running server if it was started so, else another one. `streams` is cumulative or incremental."""
        if self._process is None or self._flavour != (streams, version):
            self.kill()
            (self._folder / "port").unlink(missing_ok=True)
            arguments = ["--weight-version", version]
            if streams == "incremental":
                arguments += ["--incremental-streaming-output", "--stream-interval", "7", "--chunked-prefill-size", "64"]
            self._process, port_file, log_file = start(self._folder / version, self._folder, *arguments)
            port = wait_for_port(self._process, port_file, log_file)
            self._flavour = (streams, version)
            self._served = Served("embedded", f"http://127.0.0.1:{port}", self._folder, self._config)
        return self._served

    def kill(self) -> None:
        """Ends the server with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
