"""Ranks that carry out a command together: what fails on one of them fails on all, before the next collective call."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import distributed

from asearch.errors import AsearchError
from asearch.training.parallel import broadcast_bytes


@contextmanager
def agreed(what: str, kind: type[AsearchError]) -> Generator[None]:
    """Carry out the body on every rank and go on only if it succeeded on all of them.

    An error of ours, or of the operating system, is raised after the others know of it; they raise `kind` with its message.
    The body must not make collective calls.
    """
    fault: Exception | None = None
    try:
        yield
    except (AsearchError, OSError) as error:
        fault = error
    said = _first_fault(fault)
    if fault is not None:
        raise fault
    if said is not None:
        raise kind(f"could not {what}: {said}")


def _first_fault(fault: Exception | None) -> str | None:
    """What the first rank with a fault says, on every rank; None if there is none."""
    n_ranks, rank = distributed.get_world_size(), distributed.get_rank()
    if n_ranks == 1:
        return None if fault is None else str(fault)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = torch.tensor(n_ranks if fault is None else rank, device=device)
    distributed.all_reduce(first, distributed.ReduceOp.MIN)
    source = int(first)
    if source == n_ranks:
        return None
    world = cast("distributed.ProcessGroup", distributed.group.WORLD)
    return f"rank {source}: " + broadcast_bytes(str(fault).encode(), source, world, device).decode()
