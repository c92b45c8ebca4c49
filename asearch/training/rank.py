"""The rank process: `python -m asearch.training.rank --fd N`, N an inherited socket on which the trainer actor speaks.

One of several ranks is told so by `--rank R --world-size N --rendezvous ADDRESS:PORT`; the first of them listens there.

Import-light until `main` runs, because spawned children of this process import it again.
"""

import argparse
import importlib
import signal
import socket
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from asearch.errors import AsearchError, StorageError, TrainingError
from asearch.parent import die_with_parent
from schemas.framing import read_frame, write_frame
from schemas.local import (
    AwaitCheckpoint,
    CheckpointCopied,
    CheckpointProgress,
    CheckpointRestored,
    Command,
    ExportWeights,
    GroupJoined,
    JoinGroup,
    LoadModel,
    ModelLoaded,
    RankFailed,
    RankReady,
    Reply,
    RestoreCheckpoint,
    SaveCheckpoint,
    StopRank,
    TrainStep,
    WeightsExported,
    command_decoder,
    encoder,
)

if TYPE_CHECKING:
    from asearch.training.checkpoint import CheckpointWriter
    from asearch.training.learner import Learner
    from asearch.training.parallel import Store


@dataclass(frozen=True, slots=True)
class Seat:
    """Which of how many ranks this is, and where they meet."""

    rank: int = 0
    world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0


class Rank:
    """Carries out commands; holds the model between them."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._store: Store | None = None
        self._learner: Learner | None = None
        self._writer: CheckpointWriter | None = None

    def ready(self) -> RankReady:
        """Import what commands need, behind the device shim, and say what it is."""
        from asearch.training.cpu_shim import correct_optimizer_state, install_device_shim

        install_device_shim()
        import megatron.core
        import torch

        for module in ("checkpoint", "step"):
            importlib.import_module(f"asearch.training.{module}")
        correct_optimizer_state()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return RankReady(
            torch_version=str(torch.__version__),
            megatron_version=megatron.core.__version__,
            device=device,
            store_port=self._listen(),
        )

    def _listen(self) -> int:
        """The port at which this rank waits for the others, 0 if it does not."""
        from asearch.training.parallel import Store

        if self._seat.world_size == 1 or self._seat.rank != 0:
            return 0
        self._store = Store(self._seat.address, self._seat.port)
        return self._store.port

    def carry_out(self, command: Command) -> Reply:
        """The reply to one command. Raises what the command raises."""
        if isinstance(command, JoinGroup):
            return self._join(command)
        if isinstance(command, LoadModel):
            return self._load(command)
        if self._learner is None or self._writer is None:
            raise TrainingError(f"{type(command).__name__} came before LoadModel")
        return self._reply(self._learner, self._writer, command)

    def _reply(self, learner: "Learner", writer: "CheckpointWriter", command: Command) -> Reply:
        from asearch.training import checkpoint, export, step

        started_ns = time.perf_counter_ns()
        if isinstance(command, TrainStep):
            return step.train_step(learner, command)
        if isinstance(command, ExportWeights):
            manifest = export.export_weights(learner, Path(command.path), command.fsync)
            return WeightsExported(manifest=manifest, elapsed_ns=time.perf_counter_ns() - started_ns)
        if isinstance(command, SaveCheckpoint):
            n_bytes = writer.begin(learner, Path(command.path))
            return CheckpointCopied(n_bytes=n_bytes, elapsed_ns=time.perf_counter_ns() - started_ns)
        if isinstance(command, AwaitCheckpoint):
            return CheckpointProgress(files=writer.wait(command.timeout_s))
        if isinstance(command, RestoreCheckpoint):
            checkpoint.restore_checkpoint(learner, Path(command.path))
            return CheckpointRestored(elapsed_ns=time.perf_counter_ns() - started_ns)
        raise TrainingError(f"a rank does not know the command {type(command).__name__}")

    def _join(self, command: JoinGroup) -> GroupJoined:
        from asearch.training.parallel import join

        join(self._store, command.address, command.port, self._seat.rank, self._seat.world_size)
        return GroupJoined()

    def _load(self, command: LoadModel) -> ModelLoaded:
        from asearch.training.checkpoint import CheckpointWriter
        from asearch.training.learner import Learner
        from asearch.training.settings import decode_settings

        self._learner = None
        self._learner = Learner(Path(command.model_dir), decode_settings(command.settings), command.seed)
        self._writer = CheckpointWriter()
        return ModelLoaded(n_parameters=self._learner.n_parameters)


def serve(sock: socket.socket, seat: Seat) -> int:
    """Answer commands until `StopRank` or the end of the channel. Returns the exit status."""
    rank = Rank(seat)
    _reply(sock, rank.ready())
    while True:
        frame = read_frame(sock)
        if frame is None:
            return 0
        try:
            command = command_decoder.decode(frame)
            if isinstance(command, StopRank):
                return 0
            reply = rank.carry_out(command)
        except (AsearchError, msgspec.DecodeError, OSError) as error:
            storage = isinstance(error, StorageError)
            reply = RankFailed(message=str(error), traceback=traceback.format_exc(), fatal=False, storage=storage)
        except Exception as error:
            # Whatever is left of the model after a fault that nobody foresaw must not be trained on.
            message = f"{type(error).__name__}: {error}"
            _reply(sock, RankFailed(message=message, traceback=traceback.format_exc(), fatal=True))
            raise
        _reply(sock, reply)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m asearch.training.rank", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited file descriptor of the socket to the trainer")
    parser.add_argument("--rank", type=int, default=0, help="number of this rank, from 0")
    parser.add_argument("--world-size", type=int, default=1, help="how many ranks there are")
    parser.add_argument("--rendezvous", default="127.0.0.1:0", help="ADDRESS:PORT at which rank 0 listens; port 0: a free one")
    arguments = parser.parse_args()
    address, _, port = arguments.rendezvous.rpartition(":")
    seat = Seat(arguments.rank, arguments.world_size, address.strip("[]"), int(port))
    # A Ctrl-C in the terminal reaches the whole process group; the trainer decides when its ranks stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A rank in the middle of a step would not notice for long that nobody waits for it, and hold its device meanwhile.
    die_with_parent(signal.SIGKILL)
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    # Collectives that megatron calls by the names that torch is about to change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    with socket.socket(fileno=arguments.fd) as sock:
        sys.exit(serve(sock, seat))


def _reply(sock: socket.socket, reply: Reply) -> None:
    write_frame(sock, encoder.encode(reply))


if __name__ == "__main__":
    main()
