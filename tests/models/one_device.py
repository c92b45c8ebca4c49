"""Finding tensors on the wrong device where there is no GPU: the code runs on `meta`, which no tensor of a CPU may meet.

Torch itself lets many operations mix the two, so every one is looked at as it is dispatched, in forward and backward passes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = "meta"
_MOVES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class OneDevice(TorchDispatchMode):
    """While it is entered, an operation on tensors of `meta` and of a CPU raises AssertionError; scalars go with both."""

    def __init__(self) -> None:
        super().__init__()
        self.n_operations = 0
        """On tensors of `meta`."""
        self.names: set[str] = set()
        """Of the operations, without their overload."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs or {})) if isinstance(each, Tensor)]
        devices = {each.device.type for each in tensors if each.dim()}
        self.n_operations += META in devices
        self.names.add(func.overloadpacket.__name__)
        if len(devices) > 1 and func not in _MOVES:
            told = ", ".join(f"{each.device.type} {tuple(each.shape)}" for each in tensors)
            raise AssertionError(f"{func} is given tensors of several devices: {told}")
        if func is torch.ops.aten._unique2.default and META in devices:
            # How many there are depends on numbers, which there are none of: as many as there can be.
            return tuple(torch.empty_like(args[0], dtype=kind) for kind in (args[0].dtype, torch.int64, torch.int64))
        return func(*args, **(kwargs or {}))
