"""What megatron's optimizers keep of each weight of a rank: whole, or with the distributed optimizer a range of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from asearch.training.fragments import Part
from asearch.training.gathering import holders
from asearch.training.mapping import EMBEDDING, global_name, is_divided
from asearch.training.trainable import Trainable

MAIN = "main"
"""The float32 copy that the optimizer works on where the weight itself is of half precision."""
STEP = "step"
"""Number of updates."""


@dataclass
class Trained:
    """A weight of this rank and the part of its optimizer state that is here."""

    name: str
    """Global name."""
    parameter: Tensor
    shard: int
    n_shards: int
    writes: bool
    """Whether a checkpoint takes the weight from this rank."""
    writes_state: bool
    """Whether it takes the optimizer state from this rank."""
    start: int = 0
    end: int = 0
    """The optimizer works on elements [start, end) of the flattened weight here."""
    main: Tensor | None = None
    """What the optimizer works on; None if it works on nothing of the weight here."""
    is_copy: bool = False
    """Whether `main` has memory of its own."""
    optimizer: torch.optim.Optimizer | None = None

    def part(self, start: int, end: int) -> Part:
        """The description of elements [start, end)."""
        return Part(self.shard, self.n_shards, tuple(self.parameter.shape), start, end)

    def fields(self) -> dict[str, Tensor]:
        """The optimizer state by name: flat, or of the weight's shape, or a number."""
        if self.main is None or self.optimizer is None:
            return {}
        own = {MAIN: self.main.detach()} if self.is_copy else {}
        state = cast("dict[str, Tensor]", self.optimizer.state.get(self.main, {}))
        if state and _counts_by_group(self.optimizer):
            own[STEP] = torch.tensor(float(self._group()[STEP]))
        return own | state

    def own(self, whole: Tensor) -> Tensor:
        """Of a tensor of the weight's shape what the optimizer has here; a number as it is."""
        if not whole.dim() or self.main is None:
            return whole
        return whole.reshape(-1)[self.start : self.end].view(self.main.shape)

    def set_fields(self, main: Tensor | None, fields: Mapping[str, Tensor]) -> None:
        """Set the optimizer state here; without `main` it begins from the weight."""
        if self.main is None or self.optimizer is None:
            return
        if main is not None or self.is_copy:
            self.main.copy_(self.own(self.parameter) if main is None else main)
        self.optimizer.state.pop(self.main, None)
        if fields and _counts_by_group(self.optimizer):
            self._group()[STEP] = int(fields[STEP])
            fields = {name: value for name, value in fields.items() if name != STEP}
        if fields:
            device = self.main.device
            self.optimizer.state[self.main] = {
                name: value.to(device if value.dim() else "cpu", copy=True) for name, value in fields.items()
            }

    def _group(self) -> dict[str, Any]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return next(group for group in groups if any(each is self.main for each in group["params"]))


def _counts_by_group(optimizer: torch.optim.Optimizer) -> bool:
    """Whether steps are counted for all weights of a group at once, as fused optimizers do, and not for each as torch does."""
    return not isinstance(optimizer, torch.optim.Adam)


def trained(model: Trainable) -> list[Trained]:
    """Every weight of this rank, in the order of the module. Replicas that hold the same agree on who writes what."""
    position, place = model.position, model.position.placement
    parameters = dict(model.module.named_parameters())
    writers = holders([parameter.numel() for parameter in parameters.values()], position.n_replicas)
    states = _states(model)
    result: list[Trained] = []
    for (local, parameter), writer in zip(parameters.items(), writers, strict=True):
        name = global_name(local, model.model_config, place)
        divided = is_divided(name)
        # Of a tied embedding the first stage writes; the last one has the same.
        answers = (divided or place.tensor_rank == 0) and (name != EMBEDDING or place.pipeline_rank == 0)
        shard, n_shards = (place.tensor_rank, place.tensor_size) if divided else (0, 1)
        each = Trained(name, parameter.data, shard, n_shards, answers and writer == position.replica, answers)
        state = states.get(id(parameter))
        if state is not None:
            each.main, each.start, each.end, each.optimizer, is_range = state
            each.is_copy = each.main.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr()
            each.writes_state = answers and (is_range or each.writes)
        result.append(each)
    return result


def _states(model: Trainable) -> dict[int, tuple[Tensor, int, int, torch.optim.Optimizer, bool]]:
    """By weight: what the optimizer works on, the range of the weight that it is, its optimizer, and whether others have more."""
    found: dict[int, tuple[Tensor, int, int, torch.optim.Optimizer, bool]] = {}
    # Under bf16 the optimizer works on a float32 copy that hangs on the parameter.
    weight_of = {id(getattr(each, "main_param", each)): each for each in model.module.parameters()}
    for part in cast("Any", model.optimizer).chained_optimizers:
        inner = cast("torch.optim.Optimizer", part.optimizer)
        if not isinstance(part, DistributedOptimizer):
            for main in cast("list[Tensor]", [each for group in inner.param_groups for each in group["params"]]):
                weight = weight_of[id(main)]
                found[id(weight)] = (main, 0, weight.numel(), inner, False)
            continue
        # A rank may have a range of no weight at all, where ranks are many and weights few.
        ranges = cast("dict[torch.nn.Parameter, tuple[int, int]]", cast("Any", part).model_param_group_index_map)
        for parameter, (group, order) in ranges.items():
            span = cast("Any", part)._get_model_param_range_map(parameter)["param"]
            found[id(parameter)] = (inner.param_groups[group]["params"][order], span.start, span.end, inner, True)
    return found
