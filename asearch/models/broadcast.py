"""The process that broadcasts published weights: `python -m asearch.models.broadcast --fd N ...`, rank 0 of an update group.

It reads the published folder, so that the trainer's ranks have no part in it and never wait for a server. It lives as long as
the group's members stay the same; whoever started it kills it when a member does not answer, which frees all others.
"""

import argparse
import signal
import socket
import sys
import time
from pathlib import Path

from safetensors import SafetensorError, safe_open

from asearch.errors import TransferError
from asearch.models.update_group import UpdateGroup, open_store
from asearch.parent import die_with_parent
from asearch.weights.checking import file_places
from schemas.broadcasting import SenderReady, SendFailed, SendWeights, WeightsSent, command_decoder, encoder
from schemas.framing import read_frame, write_frame


def send(group: UpdateGroup, command: SendWeights) -> WeightsSent:
    """Broadcast what the command names. Raises TransferError."""
    begun_ns, n_bytes = time.perf_counter_ns(), 0
    for file in command.files:
        path = Path(command.path) / file
        try:
            with safe_open(path, framework="pt", device=group.device) as held:
                for place in file_places(path):
                    tensor = held.get_tensor(place.extent.name).contiguous()
                    group.broadcast(tensor)
                    n_bytes += tensor.numel() * tensor.element_size()
        except (OSError, SafetensorError) as error:
            raise TransferError(f"{path} cannot be read: {error}") from error
    return WeightsSent(n_bytes=n_bytes, elapsed_ns=time.perf_counter_ns() - begun_ns)


def serve(sock: socket.socket, given: argparse.Namespace) -> int:
    """Send what is asked for until the channel ends. Returns the exit status."""
    store = open_store(given.bind, given.timeout_s)
    write_frame(sock, encoder.encode(SenderReady(port=store.port)))
    group: UpdateGroup | None = None
    while (frame := read_frame(sock)) is not None:
        command = command_decoder.decode(frame)
        try:
            group = group or UpdateGroup.form(store, given.group, 0, given.world_size, given.backend, given.timeout_s)
            reply = send(group, command)
        except TransferError as error:
            write_frame(sock, encoder.encode(SendFailed(message=str(error))))
            return 1
        write_frame(sock, encoder.encode(reply))
    return 0


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m asearch.models.broadcast", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited file descriptor of the socket to the trainer")
    parser.add_argument("--group", required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--timeout-s", type=float, default=30.0)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    with socket.socket(fileno=given.fd) as sock:
        sys.exit(serve(sock, given))


if __name__ == "__main__":
    main()
