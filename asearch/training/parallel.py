"""Process groups, seeds, and which part of the model and of the batch a rank has."""

import gc
import logging
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from megatron.core import parallel_state
from torch import distributed
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed import ProcessGroup, ReduceOp

from asearch.errors import ConfigError, TrainingError
from asearch.loopback import stay_on_loopback
from asearch.training.settings import TrainerSettings

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Longer than any command takes: that a rank is dead is noticed by the trainer actor, at once, and not by this."""
JOIN_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a rank stands in the group, along each dimension: its number and how many there are."""

    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    context_rank: int = 0
    context_size: int = 1
    data_rank: int = 0
    data_size: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of the group."""
        return self.tensor_size * self.pipeline_size * self.context_size * self.data_size

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the last layers, and so computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1


class Store:
    """Rank 0's store, at which the ranks of a group meet."""

    def __init__(self, address: str, port: int) -> None:
        """Listen at `address`, at a free port if `port` is 0. Raises ConfigError."""
        try:
            listening = socket.create_server((address, port))
        except OSError as error:
            raise ConfigError(f"the ranks cannot meet at {address}:{port} (trainer.group_address): {error.strerror}") from error
        self.port: int = listening.getsockname()[1]
        self.store = TCPStore(
            address,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=JOIN_TIMEOUT,
            master_listen_fd=listening.detach(),
        )


def join(store: Store | None, address: str, port: int, rank: int, world_size: int) -> None:
    """Meet the other ranks; `store` is that of rank 0. Raises TrainingError if they do not come."""
    stay_on_loopback(address)
    try:
        meeting = store.store if store else TCPStore(address, port, is_master=False, timeout=JOIN_TIMEOUT)
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        distributed.init_process_group(_backend(), store=meeting, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
        distributed.barrier()
    except (distributed.DistError, RuntimeError) as error:
        raise TrainingError(f"rank {rank} of {world_size} could not meet the others at {address}:{port}: {error}") from error


def start_parallel(settings: TrainerSettings, seed: int) -> Coordinates:
    """Lay megatron's groups over the ranks that have joined, then seed. World size 1 opens no port.

    Raises ConfigError if the settings are for another number of ranks.
    """
    torch.set_num_threads(settings.threads)
    if not distributed.is_initialized():
        distributed.init_process_group(_backend(), store=HashStore(), rank=0, world_size=1)
    if distributed.get_world_size() != settings.world_size:
        raise ConfigError(
            f"tensor {settings.tensor_parallel} x pipeline {settings.pipeline_parallel} x context {settings.context_parallel} "
            f"x data {settings.data_parallel} parallel are {settings.world_size} ranks; there are {distributed.get_world_size()}"
        )
    place = _lay_groups(settings)
    torch.manual_seed(seed)
    if torch.cuda.is_available() or place.world_size > 1:
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
    return place


def tensor_group() -> ProcessGroup:
    """Ranks that share the matrices of this rank's layers."""
    return cast("ProcessGroup", parallel_state.get_tensor_model_parallel_group())


def context_group() -> ProcessGroup:
    """Ranks that share this rank's sequences."""
    return cast("ProcessGroup", parallel_state.get_context_parallel_group())


def data_group() -> ProcessGroup:
    """Ranks in this rank's place in the other replicas."""
    return cast("ProcessGroup", parallel_state.get_data_parallel_group())


def pipeline_group() -> ProcessGroup:
    """Ranks that hold the other layers of this rank's replica."""
    return cast("ProcessGroup", parallel_state.get_pipeline_model_parallel_group())


def last_stage() -> int:
    """Number, among all ranks, of the last one of `pipeline_group`."""
    return cast("int", parallel_state.get_pipeline_model_parallel_last_rank())


def all_true(here: bool, device: torch.device) -> bool:
    """Whether `here` is true on every rank of the group; every rank has to ask."""
    if distributed.get_world_size() == 1:
        return here
    flag = torch.tensor(int(here), device=device)
    distributed.all_reduce(flag, ReduceOp.MIN)
    return bool(flag)


def broadcast_bytes(data: bytes, source: int, group: ProcessGroup, device: torch.device) -> bytes:
    """`data` of the rank whose global number is `source`, on every rank of `group`; what the others pass does not matter."""
    size = torch.tensor(len(data), device=device)
    distributed.broadcast(size, source, group)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if distributed.get_rank() == source and data:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    buffer = buffer.to(device)
    distributed.broadcast(buffer, source, group)
    return buffer.cpu().numpy().tobytes()


def _lay_groups(settings: TrainerSettings) -> Coordinates:
    logging.getLogger("megatron").setLevel(logging.ERROR)
    sizes = (settings.tensor_parallel, settings.pipeline_parallel, settings.context_parallel)
    if parallel_state.model_parallel_is_initialized() and _sizes() != sizes:
        _leave_groups()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=settings.tensor_parallel,
            pipeline_model_parallel_size=settings.pipeline_parallel,
            context_parallel_size=settings.context_parallel,
        )
    return Coordinates(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=settings.tensor_parallel,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=settings.pipeline_parallel,
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=settings.context_parallel,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=settings.data_parallel,
    )


def _leave_groups() -> None:
    """Give up megatron's groups: each of gloo's keeps a thread that wakes a hundred times a second."""
    parallel_state.destroy_model_parallel()
    cast("Any", parallel_state)._global_process_group_list = None
    for group in list(cast("Any", distributed.distributed_c10d)._world.pg_map):
        if group is not distributed.group.WORLD:
            distributed.destroy_process_group(group)
    # A model that was dropped refers to itself, and to its groups.
    gc.collect()


def _sizes() -> tuple[int, int, int]:
    return (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
    )


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"
