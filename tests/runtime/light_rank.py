"""A rank process that speaks the channel and imports no trainer: what it does at a step is in the step's number.

0 answers; 1 answers on rank 0 and kills itself on the others; 2 fails alike everywhere; 3 fails on rank 1 alone; 4 never
answers on rank 0 while rank 1 leaves with a defect; 5 says another metric on rank 1; 6 fails everywhere, of a disk on rank 1.
A checkpoint is on disk on rank 0 when it is asked for with a timeout, and never on rank 1, whose disk is full.
"""

import argparse
import os
import signal
import socket
import sys
import time

from asearch.parent import die_with_parent
from schemas.framing import read_frame, write_frame
from schemas.local import (
    AwaitCheckpoint,
    CheckpointProgress,
    GroupJoined,
    JoinGroup,
    RankFailed,
    RankReady,
    Reply,
    StepDone,
    TrainStep,
    command_decoder,
    encoder,
)


def done(step: int, loss: float = 0.5) -> StepDone:
    speed = {"loss": loss, "tokens_per_s": float(os.getpid())}
    return StepDone(
        step=step, skipped=False, n_tokens_trained=1, n_tokens_masked_stale=0, staleness={}, metrics=speed, elapsed_ns=os.getpid()
    )


def reply_to(step: int, rank: int) -> Reply:
    if step == 1 and rank == 1:
        print("the last words of rank 1", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 1 or (step == 4 and rank == 0):
        time.sleep(600)
    if step == 4:
        return RankFailed(message="a defect", traceback="in line 7", fatal=True)
    if step == 2 or (step == 3 and rank == 1):
        return RankFailed(message="a bad batch", traceback="", fatal=False)
    if step == 6:
        return RankFailed(message=f"disk of rank {rank}", traceback="", fatal=False, storage=rank == 1)
    return done(step, 0.5 + rank if step == 5 else 0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--rendezvous", default="")
    arguments = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    with socket.socket(fileno=arguments.fd) as sock:

        def say(reply: Reply) -> None:
            write_frame(sock, encoder.encode(reply))

        if os.environ.get("LIGHT_RANK_FAILS") == str(arguments.rank):
            sys.exit("no such device")
        say(RankReady(torch_version="", megatron_version="", device="cpu", store_port=77 if arguments.rank == 0 else 0))
        while (frame := read_frame(sock)) is not None:
            command = command_decoder.decode(frame)
            if isinstance(command, JoinGroup):
                assert command.port == 77
                say(GroupJoined())
            if isinstance(command, AwaitCheckpoint) and arguments.rank == 1:
                say(RankFailed(message="the disk is full", traceback="", fatal=False, storage=True))
            elif isinstance(command, AwaitCheckpoint):
                say(CheckpointProgress(files={"rank0": (1, "x")} if command.timeout_s else None))
            if isinstance(command, TrainStep):
                said = reply_to(command.step, arguments.rank)
                say(said)
                if isinstance(said, RankFailed) and said.fatal:
                    sys.exit(1)


if __name__ == "__main__":
    main()
