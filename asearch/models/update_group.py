"""The collective of a weight update: rank 0 sends, inference servers receive, as SGLang's `/init_weights_update_group` has it.

The group is one of its own beside torch's default group, which need not exist. Key names in its store are those that
`torch.distributed` itself gives a group of this name, so that servers of another make meet here, too.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed import distributed_c10d as c10d
from torch.distributed.distributed_c10d import GroupName  # pyright: ignore[reportPrivateImportUsage]

from asearch.errors import TransferError
from asearch.loopback import stay_on_loopback


class UpdateGroup:
    """One member of a group. Every call waits at most the timeout that the group was made with; raises TransferError."""

    def __init__(self, store: TCPStore, group: Any, device: str) -> None:
        self._store = store
        self._group = group
        self.device = device

    @classmethod
    def form(cls, store: TCPStore, name: str, rank: int, world_size: int, backend: str, timeout_s: float) -> UpdateGroup:
        """Meet the other members at `store`. Raises TransferError when they do not all come in time."""
        timeout = timedelta(seconds=timeout_s)
        device = "cuda" if backend == "nccl" else "cpu"
        try:
            group, _ = c10d._new_process_group_helper(  # pyright: ignore[reportPrivateUsage, reportCallIssue]
                world_size,
                rank,
                [],
                c10d.Backend(backend),
                PrefixStore(name, store),
                group_name=GroupName(name),
                timeout=timeout,
            )
            c10d._world.pg_group_ranks[group] = {each: each for each in range(world_size)}  # pyright: ignore[reportPrivateUsage]
        except (RuntimeError, ValueError) as error:
            raise TransferError(f"the group {name} of {world_size} did not form within {timeout_s:g} s: {error}") from error
        return cls(store, group, device)

    def broadcast(self, tensor: Tensor) -> None:
        """Send `tensor` (rank 0), or receive into it."""
        try:
            dist.broadcast(tensor, src=0, group=self._group)
        except RuntimeError as error:
            raise TransferError(f"a broadcast of weights failed: {error}") from error

    def close(self) -> None:
        """Leave; members that still wait for this one fail."""
        dist.destroy_process_group(self._group)


def open_store(address: str, timeout_s: float) -> TCPStore:
    """Where members meet, at a free port of `address`; this process keeps it."""
    stay_on_loopback(address)
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def reach_store(address: str, port: int, timeout_s: float) -> TCPStore:
    """The store that another process keeps. Raises TransferError."""
    stay_on_loopback(address)
    try:
        return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise TransferError(f"nobody keeps a group at {address}:{port}: {error}") from error


def empty(dtype: str, shape: list[int], device: str) -> Tensor:
    """A tensor to receive into; `dtype` as torch names it. Raises TransferError."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise TransferError(f"there is no dtype {dtype!r}")
    return torch.empty(shape, dtype=kind, device=device)
