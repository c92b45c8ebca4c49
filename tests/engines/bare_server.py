"""`python bare_server.py PORT JOURNAL [BEHAVIOUR]`: answers over HTTP as an inference server does, and generates nothing.

It writes a line into the journal for its start and for each change. Behaviours: `refuses` ends at once with an error on its log,
`loads` is never ready, `tempered` says log-probabilities after temperature, `leaves-a-child` starts a child that outlives a kill
of the server alone.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    journal: Path
    behaviour: str
    aborted = threading.Event()

    def _note(self, text: str) -> None:
        with self.journal.open("a") as held:
            held.write(text + "\n")

    def _answer(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self._answer(503 if self.behaviour == "loads" else 200, {"weight_version": self.behaviour})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/generate" and not body.get("stream"):
            self._answer(200, {"meta_info": self._logprobs(body["sampling_params"])})
            return
        if self.path == "/generate":
            self._note(f"generate {body['rid']}")
            self.aborted.wait(600)
            return
        if self.path == "/abort_request":
            self.aborted.set()
        if self.path == "/update_weights_from_disk":
            self._note(f"update {body['weight_version']}")
        self._answer(200, {"success": True})

    def _logprobs(self, sampling: dict[str, float]) -> dict[str, object]:
        said = -1.0 if self.behaviour == "tempered" else -2.0
        if sampling["temperature"] > 1.0:
            return {"output_token_logprobs": [[said, 7, None]] * int(sampling["max_new_tokens"])}
        return {"input_token_logprobs": [[None, 0, None]] + [[-2.0, 7, None]] * 19}

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> None:
    port, journal, behaviour = int(sys.argv[1]), Path(sys.argv[2]), [*sys.argv, ""][3]
    if behaviour == "refuses":
        print("x" * 5000)
        sys.exit("the kernels do not like this machine")
    if behaviour == "leaves-a-child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (journal.parent / "child").write_text(str(child.pid))
    Handler.journal, Handler.behaviour = journal, behaviour
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    with journal.open("a") as held:
        held.write(f"start {os.getpid()}\n")
    server.serve_forever()


main()
