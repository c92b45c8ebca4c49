"""Sums over the loss tokens of a batch, of which every replica has a part and only the last pipeline stage knows any."""

from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor, distributed
from torch.distributed import ReduceOp

from asearch.learning.objectives import is_maximum, merge
from asearch.training.parallel import Coordinates, broadcast_bytes, data_group, last_stage, pipeline_group


def over_group(parts: Sequence[Mapping[str, Tensor]], place: Coordinates, device: torch.device) -> dict[str, Tensor]:
    """Over the micro-batches of all replicas, the same on every rank. `parts` are empty before the last pipeline stage.

    Ranks that share a replica's tensors or tokens all know the same parts, which count once.
    """
    totals: dict[str, float] = {}
    if place.is_last_stage:
        exact = [{name: value.double() for name, value in part.items()} for part in parts]
        totals = _over_replicas(merge(exact), device)
    if place.pipeline_size > 1:
        sent = broadcast_bytes(msgspec.msgpack.encode(totals), last_stage(), pipeline_group(), device)
        totals = msgspec.msgpack.decode(sent, type=dict[str, float])
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in totals.items()}


def _over_replicas(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    found: dict[str, float] = {}
    for operation, largest in ((ReduceOp.SUM, False), (ReduceOp.MAX, True)):
        names = sorted(name for name in sums if is_maximum(name) == largest)
        if names:
            values = torch.stack([sums[name].to(device) for name in names])
            distributed.all_reduce(values, operation, group=data_group())
            found |= dict(zip(names, values.tolist(), strict=True))
    return found


def filled_in(values_N: Tensor, place: Coordinates, device: torch.device) -> Tensor:
    """Numbers by token that each replica's last stage knows for its own tokens, and are 0 elsewhere: all, on every rank."""
    values_N = values_N.to(device)
    if place.is_last_stage:
        distributed.all_reduce(values_N, group=data_group())
    if place.pipeline_size > 1:
        distributed.broadcast(values_N, last_stage(), pipeline_group())
    return values_N.cpu()
