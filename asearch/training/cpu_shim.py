"""What megatron-core 0.16.1 needs to run without CUDA, and corrections of its state handling where Adam is torch's.

Import order matters: `install_device_shim` before the first import of megatron. The patches are global, so a process that
calls it must be a trainer's rank. Both functions do nothing where they are not needed.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any, cast

import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "empty_like", "zeros_like", "ones_like")


def install_device_shim() -> None:
    """Let calls that name the CUDA device land on the CPU. Returns at once where CUDA is available, and a second time."""
    if torch.cuda.is_available() or torch.Tensor.cuda is _itself:
        return
    # Compiled functions would call a C++ compiler at run time; megatron decorates some of its own with torch.compile, and
    # the decorator alone imports the whole compiler.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    cpu = torch.device("cpu")
    patch = cast("Callable[[object, str, object], None]", setattr)
    patch(torch, "compile", _not_compiled)
    # torch's compiler, if something imports it later, wants one function object under each name.
    for name in ("synchronize", "empty_cache", "set_device"):
        patch(torch.cuda, name, _returning(None))
    patch(torch.cuda, "current_device", _returning(cpu))
    patch(torch.cuda, "get_rng_state", _get_rng_state)
    patch(torch.cuda, "manual_seed", _manual_seed)
    # Streams that the dispatcher of experts copies on: there is one, and it is the processor.
    patch(torch.cuda, "Stream", _Stream)
    patch(torch.cuda, "current_stream", _Stream)
    patch(torch.cuda, "stream", _returning(contextlib.nullcontext()))
    for name in _FACTORIES:
        patch(torch, name, _on_cpu(getattr(torch, name), cpu))
    patch(torch.Tensor, "cuda", _itself)
    patch(torch.Tensor, "type", _named_as_cuda(torch.Tensor.type))

    from megatron.core.tensor_parallel import random

    patch(random, "_get_cuda_rng_state", _get_rng_state)
    patch(random, "_set_cuda_rng_state", _set_rng_state)


def correct_optimizer_state() -> None:
    """Correct three faults of `DistributedOptimizer` with torch's AdamW, on any device. Returns at once with a fused Adam.

    1. Loading puts one `step` tensor into the state of every parameter; AdamW then counts it up once per parameter.
    2. `state_dict` of an optimizer that has not stepped fails, because it expects exactly one `step`.
    3. Loading a fully reshardable checkpoint looks up `step` among the tensors of a parameter and fails.
    """
    from megatron.core.optimizer import distrib_optimizer

    if distrib_optimizer.HAVE_APEX_OR_TE or getattr(distrib_optimizer.DistributedOptimizer, "_asearch_corrected", False):
        return
    kind = cast("Any", distrib_optimizer.DistributedOptimizer)
    load, state, set_states = kind.load_state_dict, kind.state_dict, kind._set_main_param_and_optimizer_states

    def load_state_dict(self: Any, state_dict: Any) -> None:
        load(self, state_dict)
        for entry in self.optimizer.state.values():
            if isinstance(entry.get("step"), torch.Tensor):
                entry["step"] = entry["step"].clone()

    def state_dict(self: Any) -> Any:
        if not self.optimizer.state:
            # What AdamW makes at its first step; megatron's own way takes a step of zeros, which decays the weights.
            for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return state(self)

    def set_main_param_and_optimizer_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        entry = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        step = entry.pop("step", None)
        set_states(self, model_param, {name: value for name, value in tensors.items() if name != "step"})
        if step is not None:
            entry["step"] = step

    kind.load_state_dict = load_state_dict
    kind.state_dict = state_dict
    kind._set_main_param_and_optimizer_states = set_main_param_and_optimizer_states
    kind._asearch_corrected = True


class _Stream:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0

    def wait_stream(self, _other: object) -> None:
        """What was asked for before is done."""

    def record_event(self) -> "_Stream":
        """What can be waited for."""
        return self

    def synchronize(self) -> None:
        """As `wait_stream`."""


def _not_compiled(function: Callable[..., Any] | None = None, **_options: Any) -> Callable[..., Any]:
    def unchanged(decorated: Callable[..., Any]) -> Callable[..., Any]:
        return decorated

    return unchanged if function is None else function


def _returning(value: object) -> Callable[..., object]:
    def constant(*_args: Any, **_kwargs: Any) -> object:
        return value

    return constant


def _get_rng_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
    torch.set_rng_state(state)


def _manual_seed(seed: int) -> torch.Generator:
    return torch.manual_seed(seed)


def _itself(self: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
    return self


def _on_cpu(factory: Callable[..., Any], cpu: torch.device) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = cpu
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _named_as_cuda(type_of: Callable[..., Any]) -> Callable[..., Any]:
    def named(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Megatron asserts on names such as `torch.cuda.FloatTensor`.
        if dtype is None:
            return str(type_of(self)).replace("torch.", "torch.cuda.", 1)
        return type_of(self, dtype, *args, **kwargs)

    return named
